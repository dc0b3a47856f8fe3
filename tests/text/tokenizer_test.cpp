// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "core/error.h"
#include "text/input_files.h"
#include "text/scratch_directory.h"

namespace conclave::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

NextDocument once(std::string text) {
  return [text = std::move(text), given = false](std::string& out) mutable {
    out = text;
    return !std::exchange(given, true);
  };
}

const Tokenizer& small() {
  static const Tokenizer kSmall = Tokenizer::train(
      once("the cat and the hat and the bat sat; the cats' hats aren't the bats' 123 123 café café\n\n\n\n"), {290});
  return kSmall;
}

std::vector<Tokenizer> kinds() {
  std::vector<Tokenizer> all = {Tokenizer::bytes(), small()};
  for (const char* name : {"gpt2", "llama3", "neox", "digits"}) {
    all.push_back(Tokenizer::load(std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/tokenizer/" + name + ".json"));
  }
  return all;
}

TEST(TokenizerTest, BytesAreTheirOwnIds) {
  const auto tokenizer = Tokenizer::load("bytes");
  EXPECT_EQ(tokenizer.vocab_size(), 257);
  EXPECT_EQ(tokenizer.end_of_document(), 256);
  EXPECT_THAT(tokenizer.encode(std::string("a\xff\0", 3)), ElementsAre('a', 255, 0));
  EXPECT_THAT(tokenizer.encode("a<|endoftext|>", SpecialText::kTokens), ElementsAre('a', 256));
}

RC_GTEST_PROP(TokenizerTest, GivesBackAnyBytes, ()) {
  const auto byte = rc::gen::map(rc::gen::inRange(0, 256), [](int value) { return static_cast<char>(value); });
  const auto text = *rc::gen::container<std::string>(byte);
  static const std::vector<Tokenizer> kAll = kinds();
  for (const Tokenizer& tokenizer : kAll) {
    RC_ASSERT(tokenizer.decode(tokenizer.encode(text)) == text);
    RC_ASSERT(tokenizer.decode(tokenizer.encode(text, SpecialText::kTokens)) == text);
  }
}

RC_GTEST_PROP(TokenizerTest, GivesBackTextMixedWithBrokenUtf8, ()) {
  static const std::vector<Tokenizer> kAll = kinds();
  const auto part = rc::gen::element<std::string>("the ", "cat", "é", "\xc3", "\xe6\xbc", "漢", " ", "  ", "\n",
                                                  "<|endoftext|>", "\xff\xff", "'s", "123", "\u180e", "\xed\xa0\x80");
  const auto parts = *rc::gen::container<std::vector<std::string>>(part);
  std::string text;
  for (const auto& piece : parts) text += piece;
  for (const Tokenizer& tokenizer : kAll) RC_ASSERT(tokenizer.decode(tokenizer.encode(text)) == text);
}

TEST(TokenizerTest, AWarmCacheChangesNothing) {
  const std::string text = "the cat and the café, the bats' 123";
  WordCache cache;
  std::vector<int32_t> cold, warm, other;
  small().encode(text, cold, cache);
  small().encode(text, warm, cache);
  EXPECT_EQ(cold, warm);
  Tokenizer::load(std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/tokenizer/gpt2.json").encode(text, other, cache);
  EXPECT_NE(other, warm);
  warm.clear();
  small().encode(text, warm, cache);
  EXPECT_EQ(cold, warm);
}

TEST(TokenizerTest, ThreadsShareOneTokenizer) {
  const std::string text = "the cat and the hat <|endoftext|> café 123\n\n" + std::string(200, 'a');
  const auto expected = small().encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (size_t i = 0; i < wrong.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) wrong[i] += small().encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(TokenizerTest, DocumentsCannotForgeTheEndOfADocument) {
  const auto ids = small().encode("a<|endoftext|>b");
  EXPECT_THAT(ids, ::testing::Not(::testing::Contains(*small().end_of_document())));
  const auto prompt = small().encode("a<|endoftext|>b", SpecialText::kTokens);
  EXPECT_THAT(prompt, ElementsAre('a', *small().end_of_document(), 'b'));
}

TEST(TokenizerTest, RefusesToDecodeForeignIds) {
  for (const int32_t id : {-1, small().vocab_size()}) {
    try {
      small().decode(std::vector<int32_t>{0, id});
      FAIL() << id;
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr(std::to_string(id)));
      EXPECT_THAT(error.what(), HasSubstr("position 1"));
    }
  }
}

TEST(TokenizerTest, SavedAndLoadedIsTheSame) {
  const ScratchDirectory directory;
  for (const Tokenizer& tokenizer : kinds()) {
    tokenizer.save(directory / "t.json");
    const auto loaded = Tokenizer::load(directory / "t.json");
    EXPECT_EQ(loaded.hash(), tokenizer.hash());
    EXPECT_EQ(loaded.vocab_size(), tokenizer.vocab_size());
    EXPECT_EQ(loaded.end_of_document(), tokenizer.end_of_document());
    EXPECT_EQ(loaded.to_json(), tokenizer.to_json());
    EXPECT_EQ(loaded.encode("the café 123 <|endoftext|>"), tokenizer.encode("the café 123 <|endoftext|>"));
    // Written anew from what was understood, rather than copied.
    EXPECT_EQ(Tokenizer(tokenizer.parts()).hash(), tokenizer.hash());
    EXPECT_EQ(Tokenizer::from_json(Tokenizer(tokenizer.parts()).to_json(), "anew").hash(), tokenizer.hash());
  }
  EXPECT_FALSE(std::filesystem::exists(directory / "t.json.tmp"));
}

TEST(TokenizerTest, SaysWhereItCannotSave) {
  try {
    small().save("/nonexistent/place/t.json");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("/nonexistent/place/t.json"));
  }
}

// A change here means that datasets and checkpoints made before no longer match their tokenizer.
TEST(TokenizerTest, HashesAreStable) {
  EXPECT_EQ(Tokenizer::bytes().hash(), "30ba7afaa780f7ea6feb276bb32b0e27");
  EXPECT_EQ(small().hash(), "584068db074d7ac8d0604426c263bbc5");
}

TEST(TokenizerTest, EveryPartChangesTheHash) {
  const TokenizerParts base = small().parts();
  std::vector<TokenizerParts> changed(9, base);
  changed[1].tokens[256] += "x";
  std::swap(changed[2].bpe.merges[0], changed[2].bpe.merges[1]);
  changed[3].bpe.merges.pop_back();
  changed[4].rules[0].pattern += "|x";
  changed[5].rules[0].literal = true;
  changed[6].add_prefix_space = true;
  changed[7].added[0].special = false;
  changed[8].bpe.whole_pieces["the"] = 256;
  std::set<std::string> hashes;
  for (const TokenizerParts& parts : changed) hashes.insert(Tokenizer(parts).hash());
  EXPECT_EQ(hashes.size(), changed.size());
}

TEST(TokenizerTest, TheLayoutOfTheFileDoesNotChangeTheHash) {
  const auto json = nlohmann::json::parse(small().to_json());
  EXPECT_EQ(Tokenizer::from_json(json.dump(), "sorted keys, one line").hash(), small().hash());
}

}  // namespace
}  // namespace conclave::text
