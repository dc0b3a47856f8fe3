// SPDX-License-Identifier: Apache-2.0
#include "parallel/tree_reduce.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/bf16.h"
#include "core/error.h"
#include "core/random.h"
#include "support/ranks.h"

namespace conclave::parallel {
namespace {

// Numbers of very different sizes, so that another order of addition gives other bits.
template <typename T>
T number(int64_t micro_batch, int64_t element) {
  const Random random(5, Purpose::kTest, micro_batch);
  return static_cast<T>(random.normal(2 * element) * std::exp(6 * random.normal(2 * element + 1)));
}

template <typename T>
std::vector<T> reference(int64_t micro_batches, int64_t elements) {
  std::vector<T> sums, values(micro_batches);
  for (int64_t i = 0; i < elements; ++i) {
    for (int64_t m = 0; m < micro_batches; ++m) values[m] = number<T>(m, i);
    sums.push_back(tree_sum(std::span<const T>(values)));
  }
  return sums;
}

template <typename T>
std::span<T> accumulate(TreeAccumulator<T>& tree, int64_t first, int64_t count, int64_t elements) {
  tree.begin();
  for (int64_t m = first; m < first + count; ++m) {
    const std::span<T> gradient = tree.current();
    for (int64_t i = 0; i < elements; ++i) gradient[i] += number<T>(m, i);
    tree.push();
  }
  return tree.finish();
}

// Five buckets, each shared evenly.
Shards even_shards(const comm::Group& group, int64_t elements) {
  std::vector<Shards::Cuts> buckets;
  for (int64_t b = 0; b < 5; ++b) {
    const int64_t begin = elements * b / 5, count = elements * (b + 1) / 5 - begin;
    buckets.emplace_back();
    for (int r = 0; r <= group.size(); ++r) buckets.back().push_back(begin + count * r / group.size());
  }
  return Shards(group, buckets);
}

// On every one of dp ranks.
template <typename T>
std::vector<std::vector<T>> summed_over(int64_t micro_batches, int dp, int64_t elements) {
  std::vector<std::vector<T>> results(dp);
  test::run_ranks(dp, [&](const comm::Group& group) {
    TreeAccumulator<T> tree(elements);
    TreeReduce<T> all({.parts = even_shards(group, elements)});
    const int64_t count = micro_batches / dp;
    std::span<T> sum = accumulate(tree, group.rank() * count, count, elements);
    all.finish(std::span<const std::span<T>>(&sum, 1));
    results[group.rank()].assign(sum.begin(), sum.end());
  });
  return results;
}

TEST(TreeReduceTest, LeftoversAreFoldedFromTheSmallestBlock) {
  EXPECT_EQ(tree_left(2), 1u);
  EXPECT_EQ(tree_left(3), 2u);
  EXPECT_EQ(tree_left(8), 4u);
  EXPECT_EQ(tree_left(9), 8u);
  EXPECT_EQ(tree_left(14), 8u);
  const std::vector<float> v = {1e8f, 3, -1e8f, 5, 7e7f, 1, 2};
  EXPECT_EQ(tree_sum(std::span<const float>(v)), ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6]));
  EXPECT_EQ(tree_sum(std::span<const double>()), 0.0);
}

TEST(TreeReduceTest, AnAccumulatorIsTheTreeForAnyNumberOfMicroBatches) {
  TreeAccumulator<float> tree(33);
  for (int64_t n = 1; n <= 40; ++n) {
    const std::span<float> sum = accumulate(tree, 0, n, 33);
    EXPECT_EQ(std::vector<float>(sum.begin(), sum.end()), reference<float>(n, 33)) << n;
  }
}

TEST(TreeReduceTest, BuffersAreLogarithmicAndKept) {
  for (int64_t n = 1; n <= 64; ++n) {
    TreeAccumulator<float> tree(16);
    accumulate(tree, 0, n, 16);
    EXPECT_EQ(tree.buffers(), std::bit_width(static_cast<uint64_t>(n))) << n;
    const float* const first = accumulate(tree, 0, n, 16).data();
    for (int step = 0; step < 3; ++step) EXPECT_EQ(accumulate(tree, 0, n, 16).data(), first);
    EXPECT_EQ(tree.buffers(), std::bit_width(static_cast<uint64_t>(n))) << n;
  }
}

TEST(TreeReduceTest, GradientsStartAtZeroOn64ByteBoundaries) {
  TreeAccumulator<float> tree(70000);
  for (int step = 0; step < 2; ++step) {
    tree.begin();
    for (int m = 0; m < 5; ++m) {
      const std::span<float> gradient = tree.current();
      EXPECT_EQ(reinterpret_cast<uintptr_t>(gradient.data()) % 64, 0u);
      EXPECT_EQ(tree.current().data(), gradient.data());
      EXPECT_EQ(std::count(gradient.begin(), gradient.end(), 0.0f), 70000);
      std::fill(gradient.begin(), gradient.end(), 1.0f);
      tree.push();
    }
    EXPECT_EQ(tree.finish()[69999], 5.0f);
  }
}

TEST(TreeReduceTest, AMicroBatchWithoutGradientsStillCounts) {
  TreeAccumulator<float> tree(1);
  tree.begin();
  const auto push = [&](float value) {
    tree.current()[0] = value;
    tree.push();
  };
  push(1e8f);
  tree.push();
  push(3.0f);
  push(-1e8f);
  EXPECT_EQ(tree.finish()[0], (1e8f + 0.0f) + (3.0f + -1e8f));
  tree.begin();
  EXPECT_THROW(tree.finish(), BugError);
}

// Sums are made from the end to the beginning, in uneven pieces, while `ahead` micro-batches are under way: the last
// one of them is pushed after all others.
TEST(TreeReduceTest, SumsOfPartsBeforeTheLastMicroBatchIsDoneHaveTheSameBits) {
  constexpr int64_t kElements = 40;
  TreeAccumulator<float> tree(kElements);
  for (int64_t n = 1; n <= 20; ++n)
    for (int64_t ahead = 1; ahead <= std::min<int64_t>(n, 3); ++ahead) {
      tree.begin();
      for (int64_t m = 0; m < n; ++m) {
        const std::span<float> gradient = tree.current(std::max<int64_t>(0, m - (n - ahead)));
        for (int64_t i = 0; i < kElements; ++i) gradient[i] += number<float>(m, i);
        if (m < n - ahead) tree.push();
      }
      const auto expected = reference<float>(n, kElements);
      const std::span<float> sum = tree.sum_from(33);
      EXPECT_EQ(tree.under_way(), ahead);
      const auto same_from = [&](int64_t begin) {
        EXPECT_TRUE(std::equal(sum.begin() + begin, sum.end(), expected.begin() + begin)) << n << " " << ahead;
      };
      same_from(33);
      for (int64_t left = ahead; left > 0; --left) {
        EXPECT_EQ(tree.sum_from(10 * left).data(), sum.data());
        same_from(10 * left);
        tree.push();
      }
      EXPECT_EQ(tree.finish().data(), sum.data()) << n << " " << ahead;
      same_from(0);
      EXPECT_THROW(tree.sum_from(1), BugError);
    }
}

TEST(TreeReduceTest, TheTreeFitsOnlyPowersOfTwoPerRank) {
  EXPECT_TRUE(tree_fits(12, 1));
  EXPECT_TRUE(tree_fits(12, 3));
  EXPECT_TRUE(tree_fits(12, 12));
  EXPECT_FALSE(tree_fits(12, 2));
  EXPECT_FALSE(tree_fits(12, 4));
  EXPECT_FALSE(tree_fits(12, 5));
  EXPECT_FALSE(tree_fits(0, 1));
}

RC_GTEST_PROP(TreeReduceRanksTest, SumsHaveTheSameBitsForEveryDpThatFits, ()) {
  const int64_t micro_batches = *rc::gen::inRange<int64_t>(1, 25);
  const int64_t elements = *rc::gen::element<int64_t>(1, 17, 300);
  const std::vector<float> expected = reference<float>(micro_batches, elements);
  int layouts = 0;
  for (int dp = 1; dp <= std::min<int64_t>(micro_batches, 12); ++dp) {
    if (!tree_fits(micro_batches, dp)) continue;
    ++layouts;
    for (const auto& result : summed_over<float>(micro_batches, dp, elements)) RC_ASSERT(result == expected);
  }
  RC_ASSERT(layouts >= 1);
}

TEST(TreeReduceRanksTest, LargeBuffersAndDoublesToo) {
  for (const int dp : {1, 2, 4, 8}) {
    const auto expected = reference<double>(8, 3000);
    for (const auto& result : summed_over<double>(8, dp, 3000)) EXPECT_EQ(result, expected) << dp;
  }
  const auto expected = reference<float>(6, 65536 * 3 + 77);
  for (const int dp : {1, 3, 6})
    for (const auto& result : summed_over<float>(6, dp, 65536 * 3 + 77)) EXPECT_EQ(result, expected) << dp;
}

TEST(TreeReduceRanksTest, BucketsInAnyOrderAndPartsOfAnySizeGiveTheSameSums) {
  const int64_t elements = 1000;
  const auto expected = reference<float>(6, elements);
  // Rank 1 sums nothing in the first bucket, rank 2 nothing in the last; one bucket is empty. More than travel at a
  // time.
  const std::vector<Shards::Cuts> buckets{{0, 350, 350, 600},   {600, 600, 600, 600}, {600, 610, 700, 701},
                                          {701, 710, 720, 730}, {730, 730, 730, 800}, {800, 801, 1000, 1000}};
  for (const bool everywhere : {true, false})
    for (const std::vector<size_t>& early :
         {std::vector<size_t>{}, {5}, {5, 4, 3, 2, 1}, {0, 3, 5}, {5, 4, 3, 2, 1, 0}})
      test::run_ranks(3, [&](const comm::Group& group) {
        const Shards parts(group, buckets);
        std::vector<std::vector<float>> sources(2, std::vector<float>(elements));
        std::vector<std::span<float>> subtrees(sources.begin(), sources.end());
        TreeReduce<float> sum({.parts = parts, .everywhere = everywhere, .subtrees = 2});
        for (int step = 0; step < 2; ++step) {
          for (int s = 0; s < 2; ++s)
            for (int64_t i = 0; i < elements; ++i) sources[s][i] = number<float>(group.rank() * 2 + s, i);
          for (const size_t bucket : early) sum.start(bucket, subtrees);
          const std::span<float> got = sum.finish(subtrees);
          if (everywhere) {
            EXPECT_EQ(got.data(), sources[0].data());
            EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin(), expected.end()));
            continue;
          }
          ASSERT_EQ(std::ssize(got), parts.count());
          for (const auto& own : parts.own())
            EXPECT_TRUE(
                std::equal(got.begin() + own.at, got.begin() + own.at + own.count, expected.begin() + own.begin));
        }
      });
}

TEST(TreeReduceRanksTest, ABucketIsSummedOnce) {
  TreeReduce<float> sum({.parts = Shards(8)});
  std::vector<float> data(8, 1.0f);
  const std::span<float> subtree(data);
  sum.start(0, std::span<const std::span<float>>(&subtree, 1));
  EXPECT_THROW(sum.start(0, std::span<const std::span<float>>(&subtree, 1)), BugError);
}

// dp = edp * ep data-parallel ranks, each with one micro-batch; rank e of the edp group holds the subtrees of its ep
// sources.
TEST(TreeReduceRanksTest, SubtreesOfSeveralSourcesPerRankAreOneTree) {
  const int64_t elements = 500;
  for (const auto& [edp, ep] :
       std::vector<std::pair<int, int>>{{1, 4}, {2, 2}, {4, 1}, {2, 4}, {2, 3}, {3, 2}, {1, 6}, {4, 3}}) {
    const auto expected = reference<float>(edp * ep, elements);
    test::run_ranks(edp, [&, ep = ep](const comm::Group& group) {
      std::vector<std::vector<float>> sources(ep, std::vector<float>(elements));
      std::vector<std::span<float>> subtrees;
      for (int s = 0; s < ep; ++s) {
        for (int64_t i = 0; i < elements; ++i) sources[s][i] = number<float>(group.rank() * ep + s, i);
        subtrees.push_back(sources[s]);
      }
      TreeReduce<float>({.parts = even_shards(group, elements), .subtrees = ep}).finish(subtrees);
      EXPECT_EQ(sources[0], expected) << "edp " << group.size() << ", ep " << ep;
    });
  }
}

// What each of so many ranks brings, and what rank 0 has as the sum.
struct Rounded {
  std::vector<std::vector<float>> brought;
  std::vector<float> sum;
};

Rounded summed_as_bf16(int ranks, int64_t elements, bool everywhere) {
  Rounded result{std::vector<std::vector<float>>(ranks), std::vector<float>(elements)};
  test::run_ranks(ranks, [&](const comm::Group& group) {
    std::vector<float>& own = result.brought[group.rank()];
    for (int64_t i = 0; i < elements; ++i) own.push_back(number<float>(group.rank(), i));
    AlignedBuffer<float> buffer(elements);
    std::copy(own.begin(), own.end(), buffer.span().begin());
    const Shards parts = even_shards(group, elements);
    TreeReduce<float> all({.parts = parts, .everywhere = everywhere, .as_bf16 = true});
    const std::span<float> whole = buffer.span();
    const std::span<float> sum = all.finish(std::span<const std::span<float>>(&whole, 1));
    std::vector<float> gathered(elements);
    if (everywhere) {
      gathered.assign(sum.begin(), sum.end());
    } else {
      for (const auto& part : parts.own())
        std::copy_n(sum.begin() + part.at, part.count, gathered.begin() + part.begin);
      parts.gather(std::span<float>(gathered));
    }
    if (group.rank() == 0) result.sum = gathered;
  });
  return result;
}

TEST(TreeReduceBf16, SumsWhatEachRankRoundedInFloatsOnTheTree) {
  for (const int ranks : {2, 3, 4, 8})
    for (const bool everywhere : {true, false}) {
      const Rounded got = summed_as_bf16(ranks, 157, everywhere);
      for (int64_t i = 0; i < 157; ++i) {
        std::vector<float> rounded;
        for (const auto& own : got.brought) rounded.push_back(from_bf16(to_bf16(own[i])));
        ASSERT_EQ(got.sum[i], tree_sum(std::span<const float>(rounded))) << ranks << " ranks, element " << i;
      }
    }
}

TEST(TreeReduceBf16, ErrsByOneRoundingOfEachRankHoweverManyThereAre) {
  for (const int ranks : {2, 4, 8, 16}) {
    const Rounded got = summed_as_bf16(ranks, 200, true);
    double worst = 0;
    for (int64_t i = 0; i < 200; ++i) {
      double exact = 0, sizes = 0;
      for (const auto& own : got.brought) exact += own[i], sizes += std::abs(own[i]);
      worst = std::max(worst, std::abs(got.sum[i] - exact) / sizes);
    }
    EXPECT_LE(worst, std::ldexp(1.0, -8) * 1.001);
    EXPECT_GT(worst, std::ldexp(1.0, -12)) << "something was rounded";
  }
}

TEST(TreeReduceBf16, RoundsToNearestEvenAndKeepsWhatIsNotFinite) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto& [from, to] : std::vector<std::pair<float, float>>{{1.0f, 1.0f},
                                                                     {1.00390625f, 1.0f},
                                                                     {1.01171875f, 1.015625f},
                                                                     {-1.00390625f, -1.0f},
                                                                     {1.004f, 1.0078125f},
                                                                     {0.0f, 0.0f},
                                                                     {3.4e38f, inf},
                                                                     {inf, inf},
                                                                     {-inf, -inf}})
    EXPECT_EQ(from_bf16(to_bf16(from)), to) << from;
  EXPECT_TRUE(std::isnan(from_bf16(to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(from_bf16(to_bf16(std::bit_cast<float>(0x7f800001u))))) << "whose upper half is infinity";
}

TEST(TreeReduceBf16, OneRankRoundsNothing) {
  const Rounded alone = summed_as_bf16(1, 50, true);
  EXPECT_EQ(alone.sum, alone.brought[0]);
}

}  // namespace
}  // namespace conclave::parallel
