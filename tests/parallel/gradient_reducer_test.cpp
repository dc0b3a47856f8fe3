// SPDX-License-Identifier: Apache-2.0
#include "parallel/gradient_reducer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "core/tree_sum.h"
#include "parallel/mesh.h"
#include "support/ranks.h"

namespace conclave::parallel {
namespace {

constexpr int64_t kDense = 1000;
constexpr int64_t kExperts = 4;
constexpr int64_t kPerExpert = 50;

float number(const char* kind, int64_t micro_batch, int64_t element) {
  const Random random(9, Purpose::kTest, kind);
  return static_cast<float>(random.normal(micro_batch * 10000 + element) * std::exp(5 * random.uniform(element)));
}
float dense_number(int64_t m, int64_t i) { return number("dense", m, i); }
// Expert 3 never gets a token.
float expert_number(int64_t m, int64_t expert, int64_t i) {
  return expert == 3 ? 0.0f : number("expert", m, expert * kPerExpert + i);
}

struct Sums {
  std::vector<float> dense;
  std::vector<float> experts;  // all, by global expert
};

struct Layout {
  int64_t dp, ep;
  bool sharded = false;  // every rank gets a part of the sums
};
std::ostream& operator<<(std::ostream& out, const Layout& layout) {
  return out << "dp " << layout.dp << " ep " << layout.ep << (layout.sharded ? " sharded" : "");
}

// Of uneven sizes; nothing for the second rank.
Shards odd_shards(const comm::Group& group, int64_t elements) {
  std::vector<int64_t> cuts{0};
  for (int r = 1; r < group.size(); ++r) cuts.push_back(std::max(1, r - 1) * 17);
  cuts.push_back(elements);
  return Shards(group, cuts);
}

// What one rank does with its gradients in two steps; the second step's sums, gathered.
Sums run_rank(const comm::Group& world, Reduction reduction, const Layout& layout, int64_t micro_batches) {
  const auto& [dp, ep, sharded] = layout;
  ParallelConfig config;
  config.dp = dp;
  config.ep = ep;
  const Mesh mesh(world, mesh_sizes(config, dp));
  const int64_t local = kExperts / ep;
  const int64_t first_expert = mesh.coordinate(Axis::kEp) * local;
  const Shards dense = sharded ? odd_shards(mesh.dp(), kDense) : Shards(kDense);
  const Shards expert = sharded ? odd_shards(mesh.edp(), local * kPerExpert) : Shards(local * kPerExpert);
  const auto reducer = make_gradient_reducer<float>(
      reduction, {.dp = mesh.dp(), .edp = mesh.edp(), .sources = ep, .dense = dense, .expert = expert});
  const int64_t count = micro_batches / dp;
  for (int step = 0; step < 2; ++step) {
    reducer->begin_step(micro_batches);
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t i = 0; i < kDense; ++i)
        reducer->dense_gradient()[i] += dense_number(mesh.coordinate(Axis::kDp) * count + m, i);
      for (int64_t s = 0; s < ep; ++s) {
        const std::span<float> gradient = reducer->expert_gradient(s);
        const int64_t micro_batch = (mesh.coordinate(Axis::kEdp) * ep + s) * count + m;
        for (int64_t i = 0; i < std::ssize(gradient); ++i)
          gradient[i] += expert_number(micro_batch, first_expert + i / kPerExpert, i % kPerExpert);
      }
      reducer->micro_batch_done();
    }
    reducer->finish();
  }
  Sums sums{std::vector<float>(kDense), std::vector<float>(kExperts * kPerExpert)};
  std::vector<float> experts(local * kPerExpert);
  std::copy(reducer->dense().begin(), reducer->dense().end(), sums.dense.begin() + dense.begin());
  std::copy(reducer->expert().begin(), reducer->expert().end(), experts.begin() + expert.begin());
  dense.gather(std::span<float>(sums.dense));
  expert.gather(std::span<float>(experts));
  mesh.ep().all_gather(std::span<const float>(experts), std::span<float>(sums.experts));
  return sums;
}

std::vector<Sums> run_layout(Reduction reduction, const Layout& layout, int64_t micro_batches) {
  std::vector<Sums> sums(layout.dp);
  test::run_ranks(static_cast<int>(layout.dp), [&](const comm::Group& world) {
    sums[world.rank()] = run_rank(world, reduction, layout, micro_batches);
  });
  return sums;
}

template <typename Number>
std::vector<float> tree_over(int64_t micro_batches, int64_t elements, Number number) {
  std::vector<float> sums, values(micro_batches);
  for (int64_t i = 0; i < elements; ++i) {
    for (int64_t m = 0; m < micro_batches; ++m) values[m] = number(m, i);
    sums.push_back(tree_sum(std::span<const float>(values)));
  }
  return sums;
}

const std::vector<Layout> kLayouts = {{1, 1},       {2, 1},       {2, 2},       {4, 1},       {4, 2},
                                      {4, 4},       {8, 2},       {2, 1, true}, {2, 2, true}, {4, 1, true},
                                      {4, 2, true}, {4, 4, true}, {8, 2, true}, {8, 1, true}};

TEST(GradientReducerRanksTest, CanonicalGivesTheSameBitsForEveryDpAndEp) {
  const auto dense = tree_over(8, kDense, dense_number);
  const auto experts = tree_over(8, kExperts * kPerExpert,
                                 [](int64_t m, int64_t i) { return expert_number(m, i / kPerExpert, i % kPerExpert); });
  for (const Layout& layout : kLayouts)
    for (const Sums& sums : run_layout(Reduction::kCanonical, layout, 8)) {
      EXPECT_EQ(sums.dense, dense) << layout;
      EXPECT_EQ(sums.experts, experts) << layout;
    }
}

TEST(GradientReducerRanksTest, CanonicalHoldsForThreeRanksAndTwelveMicroBatches) {
  const Sums alone = run_layout(Reduction::kCanonical, {1, 1}, 12)[0];
  for (const Layout& layout : std::vector<Layout>{{3, 1}, {6, 2}, {12, 4}, {3, 1, true}, {6, 2, true}, {12, 4, true}})
    for (const Sums& sums : run_layout(Reduction::kCanonical, layout, 12)) {
      EXPECT_EQ(sums.dense, alone.dense) << layout;
      EXPECT_EQ(sums.experts, alone.experts) << layout;
    }
}

TEST(GradientReducerRanksTest, FastGivesTheSumsUpToRounding) {
  const Sums canonical = run_layout(Reduction::kCanonical, {1, 1}, 8)[0];
  for (const Layout& layout : kLayouts)
    for (const Sums& sums : run_layout(Reduction::kFast, layout, 8)) {
      for (int64_t i = 0; i < kDense; ++i) ASSERT_NEAR(sums.dense[i], canonical.dense[i], 1e-3) << layout;
      for (int64_t i = 0; i < kExperts * kPerExpert; ++i)
        ASSERT_NEAR(sums.experts[i], canonical.experts[i], 1e-3) << layout;
    }
}

TEST(GradientReducerTest, CanonicalRefusesWhatTheTreeCannotCut) {
  test::run_ranks(2, [](const comm::Group& world) {
    const auto reducer =
        make_gradient_reducer<float>(Reduction::kCanonical, {.dp = world, .edp = world, .dense = Shards(8)});
    EXPECT_THROW(reducer->begin_step(12), ConfigError);
    reducer->begin_step(4);
  });
}

TEST(GradientReducerTest, AStepOutOfOrderIsABug) {
  for (const Reduction reduction : {Reduction::kCanonical, Reduction::kFast}) {
    const auto reducer = make_gradient_reducer<double>(
        reduction, {.dp = comm::Group(), .edp = comm::Group(), .dense = Shards(8), .expert = Shards(8)});
    EXPECT_THROW(reducer->dense_gradient(), BugError);
    reducer->begin_step(2);
    reducer->micro_batch_done();
    EXPECT_THROW(reducer->finish(), BugError);
    reducer->micro_batch_done();
    EXPECT_THROW(reducer->micro_batch_done(), BugError);
    EXPECT_THROW(reducer->expert_gradient(0), BugError);
    reducer->finish();
    EXPECT_EQ(reducer->dense().size(), 8u);
    EXPECT_EQ(reducer->expert()[7], 0.0);
  }
}

}  // namespace
}  // namespace conclave::parallel
