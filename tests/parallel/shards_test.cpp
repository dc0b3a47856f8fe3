// SPDX-License-Identifier: Apache-2.0
#include "parallel/shards.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <numeric>

#include "core/error.h"
#include "support/ranks.h"

namespace conclave::parallel {
namespace {

using Cuts = std::vector<int64_t>;

TEST(ShardsTest, CutsAreThePlacesNearestToAnEvenDivision) {
  const Cuts places{0, 10, 20, 30, 90};
  EXPECT_EQ(cuts_at(places, 100, 1), (Cuts{0, 100}));
  EXPECT_EQ(cuts_at(places, 100, 2), (Cuts{0, 30, 100}));
  EXPECT_EQ(cuts_at(places, 100, 4), (Cuts{0, 30, 30, 90, 100}));  // 20 and 30 are equally near to 25
  EXPECT_EQ(cuts_at(places, 100, 8), (Cuts{0, 10, 30, 30, 30, 90, 90, 90, 100}));
  EXPECT_EQ(cuts_at({}, 100, 2), (Cuts{0, 100, 100}));
  EXPECT_EQ(cuts_at({}, 0, 3), (Cuts{0, 0, 0, 0}));
}

RC_GTEST_PROP(ShardsTest, CutsAreAscendingPlacesAndNoShardIsLargerThanItsShareAndTwoGaps, ()) {
  const Cuts gaps = *rc::gen::container<Cuts>(rc::gen::inRange<int64_t>(1, 1000));
  const int ranks = *rc::gen::inRange(1, 20);
  Cuts places{0};
  for (const int64_t gap : gaps) places.push_back(places.back() + gap);
  const int64_t elements = places.back();
  const int64_t widest = gaps.empty() ? 0 : *std::max_element(gaps.begin(), gaps.end());
  const Cuts cuts = cuts_at(places, elements, ranks);
  RC_ASSERT(std::ssize(cuts) == ranks + 1);
  RC_ASSERT(cuts.front() == 0);
  RC_ASSERT(cuts.back() == elements);
  for (int r = 0; r < ranks; ++r) {
    RC_ASSERT(std::binary_search(places.begin(), places.end(), cuts[r]));
    RC_ASSERT(cuts[r] <= cuts[r + 1]);
    RC_ASSERT(cuts[r + 1] - cuts[r] <= elements / ranks + 1 + 2 * widest);
  }
}

TEST(ShardsTest, WithoutAGroupEveryRankOwnsEverything) {
  const Shards shards(7);
  EXPECT_EQ(shards.begin(), 0);
  EXPECT_EQ(shards.count(), 7);
  std::vector<float> data(7, 1.5f);
  EXPECT_EQ(shards.own(std::span<float>(data)).size(), 7u);
  shards.gather(std::span<float>(data));
  EXPECT_EQ(data, std::vector<float>(7, 1.5f));
}

TEST(ShardsTest, CutsThatAreNoDivisionAreABug) {
  EXPECT_THROW(Shards(comm::Group(), {0}), BugError);
  EXPECT_THROW(Shards(comm::Group(), {1, 5}), BugError);
  EXPECT_THROW(Shards(comm::Group(), {0, 3, 5}), BugError);
}

TEST(ShardsRanksTest, GatherBringsEveryOwnersElementsToAll) {
  test::run_ranks(4, [](const comm::Group& group) {
    const Shards shards(group, {0, 5, 5, 6, 20});  // rank 1 owns nothing
    std::vector<double> data(20, -1.0), expected(20);
    std::iota(expected.begin(), expected.end(), 0.0);
    const auto own = shards.own(std::span<double>(data));
    ASSERT_EQ(std::ssize(own), shards.count());
    std::iota(own.begin(), own.end(), static_cast<double>(shards.begin()));
    shards.gather(std::span<double>(data));
    EXPECT_EQ(data, expected) << group.rank();
  });
}

}  // namespace
}  // namespace conclave::parallel
