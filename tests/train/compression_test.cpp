// SPDX-License-Identifier: Apache-2.0
// Training with rows that travel as one (moe.dispatch.compression): over layouts and executors, after a resume, with
// recomputation, and the share of rows that steps report.
#include "support/moe_methods.h"
#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/metrics.h"
#include "train/resumed_runs.h"

namespace conclave::test {
namespace {

constexpr auto kCanonical = parallel::Reduction::kCanonical;
constexpr auto kFast = parallel::Reduction::kFast;

std::vector<double> shares_sent(const train::StepReport& report) {
  std::vector<double> shares;
  for (const auto& layer : report.layers) shares.push_back(train::health(layer).sent.value());
  return shares;
}

LayoutCase case_of(const testing::Method& method) {
  return {.name = method.name,
          .change =
              [method](train::RunConfig& config) {
                const int64_t width = *config.moe.expert_hidden_size;
                config.moe = method.config();
                config.moe.expert_hidden_size = width;
              },
          .expect =
              [](int64_t, const train::StepReport& report) {
                for (const double share : shares_sent(report)) {
                  EXPECT_GT(share, 0.1);
                  EXPECT_LT(share, 0.9) << "some rows travel together";
                }
              },
          .padding = true};
}

std::vector<LayoutCase> compression_cases() {
  std::vector<LayoutCase> cases;
  for (const auto& method : testing::compression_methods()) cases.push_back(case_of(method));
  return cases;
}

class CompressionLayoutRanks : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(CompressionLayoutRanks, CanonicalIsBitwiseAndFastIsClose) {
  const Alone alone(GetParam());
  expect_executor_promises({}, {}, GetParam(), alone);
  for (const Layout layout : {Layout{2, 2}, Layout{4, 2}}) {
    run_ranks(static_cast<int>(layout.dp), [&](const comm::Group& world) {
      expect_layout_promise(world, layout, GetParam(), alone);
      expect_executor_promises(world, layout, GetParam(), alone);
    });
  }
}

TEST_P(CompressionLayoutRanks, AStateThatWasSavedGoesOnWithTheSameBits) { expect_resume_keeps_the_bits(GetParam()); }

// Buckets are those of a rank's own tokens, wherever the experts are.
TEST_P(CompressionLayoutRanks, TensorParallelRanksHaveBucketsOfTheirOwn) {
  auto wide = GetParam();
  wide.change = [change = wide.change](train::RunConfig& config) {
    config.model.num_key_value_heads = 4;
    config.train.micro_batch_size = 4;
    change(config);
  };
  const auto alone = run_layout({}, {}, wide, kFast);
  LayoutOutcome one;
  run_ranks(2, [&](const comm::Group& world) {
    auto mine = run_layout(world, {.tp = 2}, wide, kCanonical);
    EXPECT_NE(mine.losses[0], alone.losses[0]);
    EXPECT_NEAR(mine.losses[0] / alone.losses[0], 1.0, 0.05);
    if (world.rank() == 0) one = std::move(mine);
  });
  run_ranks(4, [&](const comm::Group& world) {
    expect_same(run_layout(world, {.dp = 2, .ep = 4, .zero = 1, .tp = 2}, wide, kCanonical), one);
    expect_close(run_layout(world, {.dp = 2, .ep = 2, .tp = 2, .etp = 2}, wide, kCanonical, 1, 1),
                 run_layout(world, {.dp = 2, .tp = 2}, wide, kCanonical, 1, 1));
  });
}

TEST_P(CompressionLayoutRanks, WhatIsMadeAgainHasTheSameBits) {
  const auto with = [&](model::Recompute recompute, moe::BackwardRows rows) {
    auto made = GetParam();
    made.change = [=, change = made.change](train::RunConfig& config) {
      change(config);
      config.memory.recompute = recompute;
      config.moe.dispatch.backward_rows = rows;
    };
    return made;
  };
  using model::Recompute;
  const auto kept = run_layout({}, {}, GetParam(), kCanonical);
  for (const auto recompute :
       {Recompute::kNone, Recompute::kSelective, Recompute::kAttention, Recompute::kFfn, Recompute::kFull})
    for (const auto rows : {moe::BackwardRows::kKeep, moe::BackwardRows::kResend})
      run_ranks(2, [&](const comm::Group& world) {
        expect_same(run_layout(world, {.dp = 2, .ep = 2}, with(recompute, rows), kCanonical), kept);
      });
}

INSTANTIATE_TEST_SUITE_P(All, CompressionLayoutRanks, ::testing::ValuesIn(compression_cases()),
                         [](const auto& info) { return info.param.name; });

TEST(CompressionShareRanks, OfRowsSentIsThatOfOneRank) {
  const LayoutCase lsh = case_of(testing::compression_methods()[0]);
  const auto alone = shares_sent(RankRun({}, {}, lsh, kCanonical).step(0));
  ASSERT_EQ(alone.size(), 2u);
  for (const Layout layout : {Layout{2, 1}, Layout{2, 2}, Layout{4, 4}})
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      EXPECT_EQ(shares_sent(RankRun(world, layout, lsh, kCanonical).step(0)), alone);
    });
}

TEST(CompressionShare, IsReportedOnlyWhereRowsAreCompressed) {
  EXPECT_FALSE(train::health({.dispatched_E = {3, 5}}).sent.has_value());
  EXPECT_EQ(train::health({.dispatched_E = {3, 5}, .sent = 2}).sent, 0.25);
  EXPECT_EQ(train::health({.dispatched_E = {0, 0}, .sent = 0}).sent, 0.0);
}

// More hashes tell more rows apart.
TEST(CompressionShare, GrowsWithHashesAndDirections) {
  const auto share_of = [](int64_t hashes, int64_t dimensions) {
    auto lsh = case_of(testing::compression_methods()[0]);
    lsh.change = [=, change = lsh.change](train::RunConfig& config) {
      change(config);
      config.moe.dispatch.compression = {.hashes = hashes, .dimensions = dimensions};
    };
    return shares_sent(RankRun({}, {}, lsh, kCanonical).step(0))[0];
  };
  EXPECT_LT(share_of(1, 1), share_of(1, 4));
  EXPECT_LT(share_of(1, 4), share_of(4, 4));
  EXPECT_GT(share_of(12, 32), 0.9);
}

}  // namespace
}  // namespace conclave::test
