// SPDX-License-Identifier: Apache-2.0
#include "text/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "core/error.h"
#include "text/word_cache.h"

namespace conclave::text {
namespace {

using ::testing::ElementsAre;

BpeTables tables(std::vector<Merge> merges) {
  BpeTables tables;
  for (int byte = 0; byte < 256; ++byte) tables.byte_ids[byte] = byte;
  tables.merges = std::move(merges);
  return tables;
}

std::vector<int32_t> encode(const Bpe& bpe, std::string_view piece) {
  std::vector<int32_t> ids;
  bpe.encode(piece, ids);
  return ids;
}

// The definition, as slow as it reads: merge the pair of lowest rank, leftmost first, until none is left.
std::vector<int32_t> encode_by_definition(const std::vector<Merge>& merges, std::string_view piece) {
  std::vector<int32_t> ids;
  for (const char byte : piece) ids.push_back(static_cast<unsigned char>(byte));
  while (true) {
    bool merged = false;
    for (const Merge& merge : merges) {
      for (size_t i = 0; i + 1 < ids.size() && !merged; ++i) {
        if (ids[i] != merge.left || ids[i + 1] != merge.right) continue;
        ids[i] = merge.merged;
        ids.erase(ids.begin() + i + 1);
        merged = true;
      }
      if (merged) break;
    }
    if (!merged) return ids;
  }
}

const std::vector<Merge> kMerges = {{'a', 'b', 256}, {256, 'c', 257}, {'b', 'c', 258}, {'a', 'a', 259},
                                    {259, 259, 260}, {'a', 258, 257}, {258, 'a', 261}, {261, 259, 262}};

TEST(BpeTest, MergesLowestRankFirst) {
  const Bpe bpe(tables(kMerges));
  EXPECT_THAT(encode(bpe, "abc"), ElementsAre(257));  // ab (rank 0) before bc (rank 2)
  EXPECT_THAT(encode(bpe, "xbcx"), ElementsAre('x', 258, 'x'));
  EXPECT_THAT(encode(bpe, "aaa"), ElementsAre(259, 'a'));  // leftmost on a tie
  EXPECT_THAT(encode(bpe, "aaaaa"), ElementsAre(260, 'a'));
  EXPECT_THAT(encode(bpe, "\xff"), ElementsAre(255));
  EXPECT_THAT(encode(bpe, ""), ElementsAre());
}

TEST(BpeTest, TakesWholePiecesBeforeMerges) {
  BpeTables with = tables(kMerges);
  with.whole_pieces["abcabc"] = 300;
  const Bpe bpe(with);
  EXPECT_THAT(encode(bpe, "abcabc"), ElementsAre(300));
  EXPECT_THAT(encode(bpe, "abcabcx"), ElementsAre(257, 257, 'x'));
}

TEST(BpeTest, RefusesTwoRulesForOnePair) { EXPECT_THROW(Bpe(tables({{'a', 'b', 256}, {'a', 'b', 257}})), BugError); }

// Lengths on both sides of the switch from scanning to the heap.
RC_GTEST_PROP(BpeTest, AgreesWithTheDefinitionForShortAndLongPieces, ()) {
  const auto size = *rc::gen::inRange<size_t>(0, 90);
  const auto piece = *rc::gen::container<std::string>(size, rc::gen::element('a', 'b', 'c'));
  const Bpe bpe(tables(kMerges));
  RC_ASSERT(encode(bpe, piece) == encode_by_definition(kMerges, piece));
}

TEST(BpeTest, EncodesAMegabyteOfOneLetter) {
  const Bpe bpe(tables(kMerges));
  const auto ids = encode(bpe, std::string((1 << 20) + 3, 'a'));
  EXPECT_EQ(ids.size(), (1u << 18) + 2);
  EXPECT_EQ(ids[0], 260);
  EXPECT_EQ(ids[ids.size() - 2], 259);
  EXPECT_EQ(ids.back(), 'a');
}

TEST(WordCacheTest, GivesBackWhatItWasTold) {
  WordCache cache;
  cache.bind(1);
  std::vector<int32_t> out = {7};
  EXPECT_FALSE(cache.recall("word", out));
  cache.remember("word", std::vector<int32_t>{1, 2, 3});
  EXPECT_TRUE(cache.recall("word", out));
  EXPECT_THAT(out, ElementsAre(7, 1, 2, 3));
  EXPECT_FALSE(cache.recall("work", out));
}

TEST(WordCacheTest, ForgetsWhenAnotherTokenizerComes) {
  WordCache cache;
  cache.bind(1);
  cache.remember("word", std::vector<int32_t>{1});
  cache.bind(1);
  std::vector<int32_t> out;
  EXPECT_TRUE(cache.recall("word", out));
  cache.bind(2);
  EXPECT_FALSE(cache.recall("word", out));
}

TEST(WordCacheTest, LetsLongPiecesAndLongCodesPass) {
  WordCache cache;
  cache.bind(1);
  std::vector<int32_t> out;
  cache.remember(std::string(27, 'x'), std::vector<int32_t>{1});
  EXPECT_FALSE(cache.recall(std::string(27, 'x'), out));
  cache.remember("ten", std::vector<int32_t>(10));
  EXPECT_FALSE(cache.recall("ten", out));
  cache.remember(std::string(26, 'x'), std::vector<int32_t>(9));
  EXPECT_TRUE(cache.recall(std::string(26, 'x'), out));
}

}  // namespace
}  // namespace conclave::text
