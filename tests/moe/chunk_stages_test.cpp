// SPDX-License-Identifier: Apache-2.0
// Chunks are a partition of one routing: every pair once, in the order of the whole, with the drops of the whole.
#include "moe/chunk_stages.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/random.h"

namespace conclave::test {
namespace {

constexpr int64_t kTokens = 23, kChoices = 3, kExperts = 7;

moe::Routing routing_with_drops() {
  const Random random(3, Purpose::kTest, "chunks");
  std::vector<int32_t> ids;
  std::vector<uint8_t> keep;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto first = static_cast<int32_t>(random.bits(t) % kExperts);
    for (int32_t k = 0; k < kChoices; ++k) {
      ids.push_back((first + 2 * k) % static_cast<int32_t>(kExperts));
      keep.push_back(random.bits(1000 + t * kChoices + k) % 4 != 0);
    }
  }
  return moe::make_routing(moe::even_picks(std::move(ids), kTokens), keep, {0, kTokens}, kExperts);
}

TEST(ChunkStages, APartOfARoutingIsARouting) {
  const auto whole = routing_with_drops();
  ASSERT_LT(whole.pairs(), kTokens * kChoices) << "some are dropped";
  for (const int64_t chunks : {1, 2, 5, 23}) {
    std::vector<int32_t> seen;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t begin = kTokens * c / chunks, end = kTokens * (c + 1) / chunks;
      std::vector<int32_t> pairs;
      const auto part = moe::part_of(whole, begin, end, pairs);
      EXPECT_EQ(part.tokens, end - begin);
      EXPECT_EQ(part.experts(), kExperts);
      ASSERT_EQ(part.pairs(), static_cast<int64_t>(pairs.size()));
      EXPECT_TRUE(std::is_sorted(pairs.begin(), pairs.end())) << "the order of the whole";
      for (int64_t n = 0; n < part.pairs(); ++n) {
        EXPECT_EQ(part.rows_N[n] + begin, whole.rows_N[pairs[n]]);
        EXPECT_EQ(part.picks_N[n], whole.picks_N[pairs[n]]);
      }
      for (int64_t e = 0; e < kExperts; ++e)
        for (int32_t n = part.offsets_E1[e]; n < part.offsets_E1[e + 1]; ++n)
          EXPECT_TRUE(pairs[n] >= whole.offsets_E1[e] && pairs[n] < whole.offsets_E1[e + 1]);
      for (int64_t t = 0; t < part.tokens; ++t) {
        std::vector<int32_t> own, expected;
        for (int32_t i = part.token_offsets_T1[t]; i < part.token_offsets_T1[t + 1]; ++i)
          own.push_back(pairs[part.token_rows_N[i]]);
        for (int32_t i = whole.token_offsets_T1[begin + t]; i < whole.token_offsets_T1[begin + t + 1]; ++i)
          expected.push_back(whole.token_rows_N[i]);
        EXPECT_EQ(own, expected) << "the order of the combining sum of token " << begin + t;
      }
      seen.insert(seen.end(), pairs.begin(), pairs.end());
    }
    std::sort(seen.begin(), seen.end());
    ASSERT_EQ(static_cast<int64_t>(seen.size()), whole.pairs());
    for (size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], static_cast<int32_t>(i));
  }
}

}  // namespace
}  // namespace conclave::test
