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

// Blocks of a model are alike: by itself each would give its slices to the same ranks.
TEST(ShardsTest, FewSlicesInEachOfManyBucketsAreSharedByAllRanks) {
  constexpr int64_t kSlice = 100, kSlices = 8, kElements = kSlice * kSlices, kBuckets = 24;
  constexpr int kRanks = 64;
  Cuts places;
  for (int64_t s = 0; s < kSlices; ++s) places.push_back(s * kSlice);
  EvenCuts even(kRanks);
  Cuts owned(kRanks, 0);
  for (int64_t b = 0; b < kBuckets; ++b) {
    const Cuts cuts = even.next(places, kElements);
    for (int r = 0; r < kRanks; ++r) owned[r] += cuts[r + 1] - cuts[r];
  }
  for (const int64_t count : owned) EXPECT_EQ(count, kElements * kBuckets / kRanks);
}

TEST(ShardsTest, WithoutAGroupEveryRankOwnsEverything) {
  const Shards shards(7);
  ASSERT_EQ(shards.own().size(), 1u);
  EXPECT_EQ(shards.own(0).begin, 0);
  EXPECT_EQ(shards.count(), 7);
  std::vector<float> data(7, 1.5f);
  shards.gather(std::span<float>(data));
  EXPECT_EQ(data, std::vector<float>(7, 1.5f));
}

TEST(ShardsTest, CutsThatAreNoDivisionAreABug) {
  const auto shards = [](std::vector<Cuts> buckets) { return Shards(comm::Group(), std::move(buckets)); };
  EXPECT_THROW(shards({}), BugError);
  EXPECT_THROW(shards({Cuts{0}}), BugError);
  EXPECT_THROW(shards({Cuts{1, 5}}), BugError);
  EXPECT_THROW(shards({Cuts{0, 3, 5}}), BugError);
  EXPECT_THROW(shards({Cuts{0, 3}, Cuts{4, 5}}), BugError);
  EXPECT_EQ(shards({Cuts{0, 3}, Cuts{3, 5}}).count(), 5);
}

// Two buckets; rank 1 owns nothing of the first, rank 3 nothing of the second.
const std::vector<Cuts> kUneven{{0, 5, 5, 6, 20}, {20, 22, 30, 31, 31}};

TEST(ShardsRanksTest, WhatARankOwnsLiesRangeAfterRange) {
  test::run_ranks(4, [](const comm::Group& group) {
    const Shards shards(group, kUneven);
    EXPECT_EQ(shards.elements(), 31);
    EXPECT_EQ(shards.count(), (std::vector<int64_t>{7, 8, 2, 14})[group.rank()]);
    const auto ranges = shards.ranges_of(1);
    EXPECT_EQ(ranges[0].count, 0);
    EXPECT_EQ(ranges[1].begin, 22);
    EXPECT_EQ(ranges[1].end(), 30);
    EXPECT_EQ(ranges[1].at, 0);
    EXPECT_EQ(shards.ranges_of(0)[1].at, 5);
    for (size_t b = 0; b < 2; ++b) EXPECT_EQ(shards.own(b).begin, shards.ranges_of(group.rank())[b].begin);
  });
}

TEST(ShardsRanksTest, GatherBringsEveryOwnersElementsToAll) {
  test::run_ranks(4, [](const comm::Group& group) {
    const Shards shards(group, kUneven);
    std::vector<double> data(31, -1.0), expected(31);
    std::iota(expected.begin(), expected.end(), 0.0);
    for (const auto& own : shards.own()) std::copy_n(expected.begin() + own.begin, own.count, data.begin() + own.begin);
    shards.gather(std::span<double>(data));
    EXPECT_EQ(data, expected) << group.rank();
  });
}

TEST(ShardsRanksTest, BucketsTravelSideBySide) {
  test::run_ranks(3, [](const comm::Group& group) {
    const Shards shards(group, {{0, 2, 4, 6}, {6, 6, 7, 9}});
    std::vector<float> data(9, -1.0f);
    for (const auto& own : shards.own())
      std::fill_n(data.begin() + own.begin, own.count, static_cast<float>(group.rank()));
    comm::Work second = shards.start_gather(1, std::span<float>(data));
    comm::Work first = shards.start_gather(0, std::span<float>(data));
    second.finish();
    EXPECT_EQ((std::vector<float>(data.begin() + 6, data.end())), (std::vector<float>{1, 2, 2}));
    first.finish();
    EXPECT_EQ((std::vector<float>(data.begin(), data.begin() + 6)), (std::vector<float>{0, 0, 1, 1, 2, 2}));
  });
}

}  // namespace
}  // namespace conclave::parallel
