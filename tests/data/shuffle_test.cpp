// SPDX-License-Identifier: Apache-2.0
#include "data/shuffle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <vector>

#include "core/error.h"

namespace conclave::data {
namespace {

std::vector<int64_t> all_of(const Permutation& order, int64_t size) {
  std::vector<int64_t> entries;
  for (int64_t i = 0; i < size; ++i) entries.push_back(order(i));
  return entries;
}

bool bijection(int64_t size, uint64_t epoch) {
  std::vector<bool> seen(static_cast<size_t>(size));
  for (const int64_t entry : all_of(Permutation(7, "source", epoch, size), size)) {
    if (entry < 0 || entry >= size || seen[static_cast<size_t>(entry)]) return false;
    seen[static_cast<size_t>(entry)] = true;
  }
  return true;
}

TEST(ShuffleTest, IsABijectionForSmallAndOddSizes) {
  for (int64_t size = 1; size <= 300; ++size) EXPECT_TRUE(bijection(size, 0)) << size;
  for (int64_t size = 301; size <= 5000; size += 94) EXPECT_TRUE(bijection(size, 3)) << size;
  for (const int64_t size : {1023, 1024, 1025, 4095, 4096, 4097, 4999, 5000}) EXPECT_TRUE(bijection(size, 1)) << size;
}

TEST(ShuffleTest, IsABijectionForAnySeedAndName) {
  rc::check([](uint64_t seed, const std::string& name, uint64_t epoch) {
    const auto size = *rc::gen::inRange<int64_t>(1, 2000);
    auto entries = all_of(Permutation(seed, name, epoch, size), size);
    std::sort(entries.begin(), entries.end());
    for (int64_t i = 0; i < size; ++i) RC_ASSERT(entries[static_cast<size_t>(i)] == i);
  });
}

TEST(ShuffleTest, StaysWithinHugeSizesAndDoesNotRepeatNearby) {
  const int64_t size = (int64_t{1} << 44) + 12345;
  const Permutation order(1, "huge", 0, size);
  std::vector<int64_t> entries = all_of(order, 1000);
  for (const int64_t entry : entries) EXPECT_TRUE(entry >= 0 && entry < size);
  std::sort(entries.begin(), entries.end());
  EXPECT_EQ(std::adjacent_find(entries.begin(), entries.end()), entries.end());
  EXPECT_GT(entries.back() - entries.front(), size / 2);
}

TEST(ShuffleTest, SeedNameAndEpochEachGiveAnotherOrder) {
  const auto base = all_of(Permutation(1, "a", 0, 1000), 1000);
  EXPECT_EQ(all_of(Permutation(1, "a", 0, 1000), 1000), base);
  EXPECT_NE(all_of(Permutation(2, "a", 0, 1000), 1000), base);
  EXPECT_NE(all_of(Permutation(1, "b", 0, 1000), 1000), base);
  EXPECT_NE(all_of(Permutation(1, "a", 1, 1000), 1000), base);
}

// Pins the order: a change here breaks every run in progress and needs another kShuffleVersion.
TEST(ShuffleGolden, TheOrderOfVersionOne) {
  ASSERT_EQ(kShuffleVersion, 1);
  EXPECT_THAT(all_of(Permutation(1, "english", 0, 10), 10), ::testing::ElementsAre(7, 5, 4, 1, 9, 8, 6, 0, 2, 3));
  EXPECT_THAT(all_of(Permutation(1, "english", 1, 10), 10), ::testing::ElementsAre(9, 2, 0, 3, 7, 4, 8, 1, 5, 6));
}

TEST(ShuffleTest, PutsEveryEntryEverywhereAboutEquallyOften) {
  constexpr int64_t kSize = 10, kEpochs = 10000;
  std::vector<int> counts(kSize * kSize);
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const Permutation order(5, "x", epoch, kSize);
    for (int64_t i = 0; i < kSize; ++i) ++counts[static_cast<size_t>(i * kSize + order(i))];
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 5 * std::sqrt(900.0));  // binomial, five sigma
}

TEST(ShuffleTest, NeighboursDoNotStayNeighbours) {
  const int64_t size = 5000;
  const auto entries = all_of(Permutation(3, "x", 0, size), size);
  int kept = 0;
  double distance = 0;
  for (size_t i = 1; i < entries.size(); ++i) {
    kept += entries[i] == entries[i - 1] + 1;
    distance += static_cast<double>(std::abs(entries[i] - entries[i - 1])) / static_cast<double>(size);
  }
  EXPECT_LT(kept, 10);  // one is expected
  EXPECT_NEAR(distance / static_cast<double>(size), 1.0 / 3, 0.02);
}

}  // namespace
}  // namespace conclave::data
