// SPDX-License-Identifier: Apache-2.0
#include "text/bpe_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <map>

#include "core/error.h"
#include "text/tokenizer.h"

namespace conclave::text {
namespace {

using ::testing::ElementsAre;

PieceCounts counts(const std::map<std::string, int64_t>& pieces) {
  PieceCounts counts;
  for (const auto& [piece, times] : pieces) counts.add(piece, times);
  return counts;
}

NextDocument documents(std::vector<std::string> list) {
  auto rest = std::make_shared<std::vector<std::string>>(std::move(list));
  return [rest, at = size_t{0}](std::string& out) mutable {
    if (at == rest->size()) return false;
    out = (*rest)[at++];
    return true;
  };
}

// The definition: recount all pairs before every merge.
std::vector<Merge> learn_by_definition(const std::map<std::string, int64_t>& pieces, int32_t max_tokens) {
  std::vector<std::pair<std::vector<int32_t>, int64_t>> words;
  std::map<std::string, int32_t> ids;
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const auto& [piece, times] : pieces) {
    words.emplace_back();
    for (const char byte : piece) words.back().first.push_back(static_cast<unsigned char>(byte));
    words.back().second = times;
  }
  std::vector<Merge> merges;
  std::map<std::string, bool> taken;
  while (static_cast<int32_t>(tokens.size()) < max_tokens) {
    std::map<std::pair<int32_t, int32_t>, int64_t> pairs;
    for (const auto& [word, times] : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) pairs[{word[i], word[i + 1]}] += times;
    }
    std::pair<int32_t, int32_t> best;
    int64_t most = 1;
    for (const auto& [pair, count] : pairs) {  // ascending, so the first of equals is the smallest
      if (count > most && !taken[tokens[pair.first] + tokens[pair.second]])
        std::tie(best, most) = std::tie(pair, count);
    }
    if (most < 2) break;
    const Merge merge{best.first, best.second, static_cast<int32_t>(tokens.size())};
    tokens.push_back(tokens[merge.left] + tokens[merge.right]);
    taken[tokens.back()] = true;
    merges.push_back(merge);
    for (auto& [word, times] : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) {
        if (word[i] != merge.left || word[i + 1] != merge.right) continue;
        word[i] = merge.merged;
        word.erase(word.begin() + i + 1);
      }
    }
  }
  return merges;
}

TEST(BpeTrainerTest, MergesTheMostFrequentPairFirst) {
  const auto learned = learn_merges(counts({{"low", 5}, {"lower", 2}, {"newest", 6}, {"widest", 3}}), 260, {});
  EXPECT_THAT(learned.merges,
              ElementsAre(Merge{'e', 's', 256}, Merge{256, 't', 257}, Merge{'l', 'o', 258}, Merge{258, 'w', 259}));
  EXPECT_EQ(learned.tokens[257], "est");
}

TEST(BpeTrainerTest, BreaksTiesByTheSmallerLeftThenTheSmallerRight) {
  EXPECT_THAT(learn_merges(counts({{"xy", 3}, {"bz", 3}, {"ba", 3}}), 259, {}).merges,
              ElementsAre(Merge{'b', 'a', 256}, Merge{'b', 'z', 257}, Merge{'x', 'y', 258}));
}

TEST(BpeTrainerTest, StopsWhenNoPairOccursTwice) {
  const auto learned = learn_merges(counts({{"abab", 1}, {"xyz", 1}}), 1000, {});
  EXPECT_THAT(learned.merges, ElementsAre(Merge{'a', 'b', 256}));
  EXPECT_EQ(learned.tokens.size(), 257u);
}

TEST(BpeTrainerTest, KeepsToItsSize) {
  EXPECT_EQ(learn_merges(counts({{"abcdefgh", 9}}), 256, {}).merges.size(), 0u);
  EXPECT_EQ(learn_merges(counts({{"abcdefgh", 9}}), 259, {}).tokens.size(), 259u);
}

TEST(BpeTrainerTest, NeverSpellsAReservedText) {
  const auto learned = learn_merges(counts({{"<e>", 50}}), 300, {"<e>"});
  for (const std::string& token : learned.tokens) EXPECT_NE(token, "<e>");
  EXPECT_EQ(learned.merges.size(), 1u);
}

RC_GTEST_PROP(BpeTrainerTest, AgreesWithRecountingBeforeEveryMerge, ()) {
  const auto word = rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::element('a', 'b', 'c')));
  const auto pieces = *rc::gen::container<std::map<std::string, int64_t>>(word, rc::gen::inRange<int64_t>(1, 6));
  const auto learned = learn_merges(counts(pieces), 290, {});
  RC_ASSERT(learned.merges == learn_by_definition(pieces, 290));
}

std::vector<std::string> many_documents() {
  std::vector<std::string> list;
  uint64_t state = 1;
  for (int i = 0; i < 400; ++i) {
    std::string text;
    for (int j = 0; j < 2000; ++j) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      text += "etaoin shrdlu's\n12 é"[(state >> 33) % 21];
    }
    list.push_back(std::move(text));
  }
  return list;
}

TEST(BpeTrainerTest, DoesNotDependOnThreadsNorOrder) {
  std::vector<std::string> list = many_documents();
  const std::string one = Tokenizer::train(documents(list), {600, {"<|endoftext|>"}, 1}).to_json();
  EXPECT_EQ(Tokenizer::train(documents(list), {600, {"<|endoftext|>"}, 2}).to_json(), one);
  EXPECT_EQ(Tokenizer::train(documents(list), {600, {"<|endoftext|>"}, 7}).to_json(), one);
  std::reverse(list.begin(), list.end());
  EXPECT_EQ(Tokenizer::train(documents(list), {600, {"<|endoftext|>"}, 3}).to_json(), one);
}

TEST(BpeTrainerTest, PutsBytesFirstAndSpecialTokensLast) {
  const auto tokenizer = Tokenizer::train(documents({"hello hello hello"}), {270, {"<|endoftext|>", "<pad>"}, 1});
  for (int32_t byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer.decode(std::vector{byte}), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(tokenizer.end_of_document(), tokenizer.vocab_size() - 2);
  EXPECT_EQ(tokenizer.added_token("<pad>"), tokenizer.vocab_size() - 1);
  EXPECT_EQ(tokenizer.added_token("<none>"), std::nullopt);
}

TEST(BpeTrainerTest, RefusesAVocabularyWithoutRoomForBytes) {
  EXPECT_THROW(Tokenizer::train(documents({"a"}), {256, {"<|endoftext|>"}, 1}), UsageError);
  EXPECT_EQ(Tokenizer::train(documents({"aaaa"}), {257, {"<|endoftext|>"}, 1}).vocab_size(), 257);
}

TEST(BpeTrainerTest, PassesOnWhatTheSourceThrows) {
  for (const int threads : {1, 4}) {
    int given = 0;
    const NextDocument broken = [&](std::string& out) -> bool {
      if (++given == 5) throw DataError("line 5 is broken");
      out.assign(1 << 20, 'a');
      return true;
    };
    EXPECT_THROW(count_pieces(broken, PreTokenizer(), threads), DataError);
    EXPECT_EQ(given, 5) << "nobody asks again after an error";
  }
}

}  // namespace
}  // namespace conclave::text
