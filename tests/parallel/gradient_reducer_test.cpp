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

// Two buckets of uneven parts; nothing of the second one for the second rank.
Shards odd_shards(const comm::Group& group, int64_t elements) {
  const int64_t middle = elements / 3;
  Shards::Cuts first, second{middle};
  for (int r = 0; r <= group.size(); ++r) first.push_back(middle * r / group.size());
  for (int r = 1; r < group.size(); ++r) second.push_back(middle + std::max(1, r - 1) * 7);
  second.push_back(elements);
  return Shards(group, {first, second});
}

// When sums over ranks start: at the end, or those of the last buckets while micro-batches are under way.
enum class Start { kAtTheEnd, kBeforeTheLastIsDone, kBeforeTheLastTwoAreDone };

// One rank in a layout.
class Rank {
 public:
  Rank(const comm::Group& world, Reduction reduction, const Layout& layout)
      : layout_(layout),
        mesh_(world, sizes(layout)),
        local_(kExperts / layout.ep),
        dense_(odd_shards(mesh_.dp(), kDense)),
        expert_(odd_shards(mesh_.edp(), local_ * kPerExpert)),
        reducer_(make_gradient_reducer<float>(
            reduction, {.dense = dense_, .expert = expert_, .sharded = layout.sharded, .sources = layout.ep})) {}

  // Its gradients of a step of `micro_batches`; the sums, gathered.
  Sums step(int64_t micro_batches, Start start) {
    reducer_->begin_step(micro_batches);
    const int64_t count = micro_batches / layout_.dp;
    const int64_t together = start == Start::kBeforeTheLastTwoAreDone ? std::min<int64_t>(2, count) : 1;
    for (int64_t m = 0; m < count; ++m) {
      const bool waits = m >= count - together;
      write(m, count, waits ? m - (count - together) : 0);
      if (!waits) reducer_->micro_batch_done();
    }
    for (int64_t left = together; left > 0; --left) {
      if (start != Start::kAtTheEnd && left == together) complete(1);
      if (start != Start::kAtTheEnd && left == 1) reducer_->complete(true, 0);
      reducer_->micro_batch_done();
    }
    reducer_->finish();
    return sums();
  }

 private:
  static AxisValues sizes(const Layout& layout) {
    ParallelConfig config;
    config.dp = layout.dp;
    config.ep = layout.ep;
    return mesh_sizes(config, layout.dp);
  }
  void complete(size_t bucket) {
    reducer_->complete(false, bucket);
    reducer_->complete(true, bucket);
  }
  void write(int64_t m, int64_t count, int64_t ahead) {
    for (int64_t i = 0; i < kDense; ++i)
      reducer_->dense_gradient(ahead)[i] += dense_number(mesh_.coordinate(Axis::kDp) * count + m, i);
    for (int64_t s = 0; s < layout_.ep; ++s) {
      const std::span<float> gradient = reducer_->expert_gradient(s, ahead);
      const int64_t micro_batch = (mesh_.coordinate(Axis::kEdp) * layout_.ep + s) * count + m;
      const int64_t first_expert = mesh_.coordinate(Axis::kEp) * local_;
      for (int64_t i = 0; i < std::ssize(gradient); ++i)
        gradient[i] += expert_number(micro_batch, first_expert + i / kPerExpert, i % kPerExpert);
    }
  }
  void put(std::span<const float> owned, const Shards& shards, std::vector<float>& whole) const {
    if (!layout_.sharded) {
      std::copy(owned.begin(), owned.end(), whole.begin());
      return;
    }
    for (const auto& own : shards.own()) std::copy_n(owned.begin() + own.at, own.count, whole.begin() + own.begin);
    shards.gather(std::span<float>(whole));
  }
  Sums sums() {
    Sums sums{std::vector<float>(kDense), std::vector<float>(kExperts * kPerExpert)};
    std::vector<float> experts(local_ * kPerExpert);
    put(reducer_->dense(), dense_, sums.dense);
    put(reducer_->expert(), expert_, experts);
    mesh_.ep().all_gather(std::span<const float>(experts), std::span<float>(sums.experts));
    return sums;
  }

  Layout layout_;
  Mesh mesh_;
  int64_t local_;
  Shards dense_, expert_;
  std::unique_ptr<GradientReducer<float>> reducer_;
};

std::vector<Sums> run_layout(Reduction reduction, const Layout& layout, int64_t micro_batches,
                             Start start = Start::kAtTheEnd) {
  std::vector<Sums> sums(layout.dp);
  test::run_ranks(static_cast<int>(layout.dp), [&](const comm::Group& world) {
    Rank rank(world, reduction, layout);
    rank.step(micro_batches, start);
    sums[world.rank()] = rank.step(micro_batches, start);
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

// When the sums start changes no bit, of either reduction; and fast, too, gives the same to those that share and those
// that do not.
TEST(GradientReducerRanksTest, SumsThatStartBeforeTheEndHaveTheSameBits) {
  for (const Reduction reduction : {Reduction::kCanonical, Reduction::kFast})
    for (const Layout& layout : kLayouts) {
      const auto expected = run_layout(reduction, {layout.dp, layout.ep}, 16);
      for (const Start start : {Start::kAtTheEnd, Start::kBeforeTheLastIsDone, Start::kBeforeTheLastTwoAreDone}) {
        const auto got = run_layout(reduction, layout, 16, start);
        for (int64_t r = 0; r < layout.dp; ++r) {
          EXPECT_EQ(got[r].dense, expected[r].dense) << layout << " " << static_cast<int>(start);
          EXPECT_EQ(got[r].experts, expected[r].experts) << layout << " " << static_cast<int>(start);
        }
      }
    }
}

TEST(GradientReducerTest, CanonicalRefusesWhatTheTreeCannotCut) {
  test::run_ranks(2, [](const comm::Group& world) {
    const auto reducer = make_gradient_reducer<float>(
        Reduction::kCanonical, {.dense = Shards(world, {{0, 4, 8}}), .expert = Shards(world, {{0, 0, 0}})});
    EXPECT_THROW(reducer->begin_step(12), ConfigError);
    reducer->begin_step(4);
  });
}

TEST(GradientReducerTest, ABucketIsCompleteOnlyWhenEveryMicroBatchHasBegun) {
  const auto reducer = make_gradient_reducer<double>(Reduction::kCanonical, {.dense = Shards(8), .expert = Shards(8)});
  reducer->begin_step(2);
  reducer->dense_gradient();
  reducer->expert_gradient(0);
  for (const bool expert : {false, true}) EXPECT_THROW(reducer->complete(expert, 0), BugError);
  reducer->dense_gradient(1)[3] = 2;
  reducer->complete(false, 0);
  reducer->micro_batch_done();
  reducer->micro_batch_done();
  reducer->finish();
  EXPECT_EQ(reducer->dense()[3], 2.0);
}

TEST(GradientReducerTest, AStepOutOfOrderIsABug) {
  for (const Reduction reduction : {Reduction::kCanonical, Reduction::kFast}) {
    const auto reducer = make_gradient_reducer<double>(reduction, {.dense = Shards(8), .expert = Shards(8)});
    EXPECT_THROW(reducer->dense_gradient(), BugError);
    EXPECT_THROW(reducer->complete(false, 0), BugError);
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
