// SPDX-License-Identifier: Apache-2.0
// What depends on which rank computes an expert: mean outputs that stand in for experts (Default MoE, grouped dense
// backpropagation), and dropout inside them. Beside the layouts that every method passes: parts of an expert's width,
// recomputation, steps that are left out, evaluations between steps.
#include "support/moe_methods.h"
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

constexpr auto kCanonical = parallel::Reduction::kCanonical;
constexpr auto kFast = parallel::Reduction::kFast;

LayoutCase default_moe(const std::function<void(train::RunConfig&)>& more = [](auto&) {}) {
  return {.name = "DefaultMoe", .change = [more](train::RunConfig& config) {
            config.moe.balance = {};
            config.moe.router.type = "default_moe";
            config.moe.router.default_moe = {.decay = 0.5};
            config.model.num_key_value_heads = 4;
            config.train.micro_batch_size = 4;
            more(config);
          }};
}

LayoutCase dropout(const std::function<void(train::RunConfig&)>& more = [](auto&) {}) {
  return {.name = "Dropout", .change = [more](train::RunConfig& config) {
            config.moe.experts.dropout = 0.25;
            config.model.num_key_value_heads = 4;
            config.train.micro_batch_size = 4;
            more(config);
          }};
}

LayoutCase grouped(const std::function<void(train::RunConfig&)>& more = [](auto&) {}) {
  return {.name = "Grouped", .change = [more](train::RunConfig& config) {
            config.moe.balance = {};
            config.moe.router.type = "dense_backprop_group";
            config.moe.top_k = 3;
            config.model.num_key_value_heads = 4;
            config.train.micro_batch_size = 4;
            more(config);
          }};
}

LayoutCase recurrent(const std::function<void(train::RunConfig&)>& more = [](auto&) {}) {
  return {.name = "Recurrent", .change = [more](train::RunConfig& config) {
            config.moe.router.recurrent = {.hidden_size = 16};
            config.model.num_key_value_heads = 4;
            config.train.micro_batch_size = 4;
            more(config);
          }};
}

std::vector<double> means_of(const LayoutOutcome& outcome) {
  std::vector<double> all;
  for (const auto& [name, bytes] : outcome.state) {
    if (name.find("default_outputs") == std::string::npos) continue;
    const auto values = numbers(bytes);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

void expect_close_means(const LayoutOutcome& got, const LayoutOutcome& expected) {
  auto difference = means_of(got);
  const auto reference = means_of(expected);
  ASSERT_EQ(difference.size(), reference.size());
  EXPECT_GT(norm_of(reference), 0);
  for (size_t i = 0; i < reference.size(); ++i) difference[i] -= reference[i];
  EXPECT_LE(norm_of(difference), 1e-5 * norm_of(reference));
}

const std::vector<Layout> kPartsOfExperts{{.tp = 2},
                                          {.ep = 2, .tp = 2},
                                          {.tp = 2, .etp = 2},
                                          {.dp = 2, .ep = 2, .zero = 1, .tp = 2, .etp = 2},
                                          {.dp = 2, .ep = 4, .tp = 2}};

TEST(ExpertTermsRanks, MeansAreThoseOfOneRankWhereverExpertsAndTheirPartsAre) {
  const auto alone = run_layout({}, {}, default_moe(), kCanonical, 1, 1);
  for (const Layout& layout : kPartsOfExperts) {
    SCOPED_TRACE(fmt::format("dp {} ep {} tp {} etp {}", layout.dp, layout.ep, layout.tp, layout.etp));
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      const auto spread = run_layout(world, layout, default_moe(), kCanonical, 1, 1);
      expect_close_means(spread, alone);
      expect_close(spread, alone);
    });
  }
}

TEST(ExpertTermsRanks, ATokenLosesTheSameActivationsWhereverExpertsAndTheirPartsAre) {
  const auto alone = run_layout({}, {}, dropout(), kFast);
  const auto none = run_layout({}, {}, dropout([](auto& config) { config.moe.experts.dropout = 0; }), kFast);
  EXPECT_NE(alone.losses[0], none.losses[0]);
  for (const Layout& layout : kPartsOfExperts) {
    SCOPED_TRACE(fmt::format("dp {} ep {} tp {} etp {}", layout.dp, layout.ep, layout.tp, layout.etp));
    run_ranks(layout.ranks(),
              [&](const comm::Group& world) { expect_close(run_layout(world, layout, dropout(), kFast), alone); });
  }
}

TEST(ExpertTermsRanks, WhatStandsInIsTheSameWhereverExpertsAndTheirPartsAre) {
  const auto alone = run_layout({}, {}, grouped(), kFast);
  for (const Layout& layout : kPartsOfExperts) {
    SCOPED_TRACE(fmt::format("dp {} ep {} tp {} etp {}", layout.dp, layout.ep, layout.tp, layout.etp));
    run_ranks(layout.ranks(),
              [&](const comm::Group& world) { expect_close(run_layout(world, layout, grouped(), kFast), alone); });
  }
}

TEST(ExpertTermsRanks, RecomputationMovesNoMeanAndDrawsTheSame) {
  using model::Recompute;
  for (const auto& make : {default_moe, dropout, grouped, recurrent}) {
    const auto kept = run_layout({}, {}, make([](auto&) {}), kCanonical);
    for (const auto recompute : {Recompute::kSelective, Recompute::kFfn, Recompute::kFull}) {
      for (const auto rows : {moe::BackwardRows::kKeep, moe::BackwardRows::kResend}) {
        const auto again = make([&](train::RunConfig& config) {
          config.memory.recompute = recompute;
          config.moe.dispatch.backward_rows = rows;
        });
        expect_same(run_layout({}, {}, again, kCanonical), kept);
        run_ranks(2, [&](const comm::Group& world) {
          expect_same(run_layout(world, {.dp = 2, .ep = 2}, again, kCanonical), kept);
        });
      }
    }
  }
}

TEST(ExpertTerms, AStepThatIsLeftOutMovesNoMean) {
  RankRun run({}, {}, default_moe(), kCanonical);
  run.step(0);
  const Tensor means = run.model().state().layers[0].get("default_outputs"), before = means.clone();
  EXPECT_TRUE(run.step(1, true).skipped);
  EXPECT_TRUE(means.equal(before));
  EXPECT_FALSE(run.step(2).skipped);
  EXPECT_FALSE(means.equal(before));
}

TEST(ExpertTerms, AnEvaluationBetweenStepsChangesNothing) {
  for (const auto& make : {default_moe, dropout}) {
    RankRun plain({}, {}, make([](auto&) {}), kCanonical), evaluated({}, {}, make([](auto&) {}), kCanonical);
    for (int64_t step = 0; step < 2; ++step) {
      plain.step(step), evaluated.step(step);
      const Batch batch = layout_batch(evaluated.config(), false, 7, 0);
      nn::Frame frame = evaluated.model().frame(batch, nullptr, step);
      for (const auto& stage : evaluated.model().stages()) stage->forward(frame);
      model::RoutingTotals totals(evaluated.model());
      totals.add(evaluated.model(), frame);
      for (const auto& layer : totals.layers())
        for (const int64_t sum : layer.outputs_ED) EXPECT_EQ(sum, 0);
    }
    EXPECT_EQ(evaluated.all_state(), plain.all_state());
  }
}

}  // namespace
}  // namespace conclave::test
