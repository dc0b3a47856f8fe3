// SPDX-License-Identifier: Apache-2.0
#include "text/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "core/error.h"

namespace conclave::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> cut(const PreTokenizer& pre_tokenizer, std::string_view text) {
  std::vector<std::string> pieces;
  pre_tokenizer.for_each(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

const PreTokenizer& gpt2() {
  static const PreTokenizer kGpt2({{std::string(kGpt2Pattern), false}});
  return kGpt2;
}

TEST(PreTokenizerTest, CutsAsTheGpt2PatternDoes) {
  EXPECT_THAT(cut(gpt2(), "Hello world"), ElementsAre("Hello", " world"));
  EXPECT_THAT(cut(gpt2(), "It's they'll, DON'T"), ElementsAre("It", "'s", " they", "'ll", ",", " DON", "'", "T"));
  EXPECT_THAT(cut(gpt2(), "abc123 456def"), ElementsAre("abc", "123", " 456", "def"));
  EXPECT_THAT(cut(gpt2(), "a  b   c "), ElementsAre("a", " ", " b", "  ", " c", " "));
  EXPECT_THAT(cut(gpt2(), "x\n\n  y"), ElementsAre("x", "\n\n ", " y"));
  EXPECT_THAT(cut(gpt2(), "f(x) = {1};"), ElementsAre("f", "(", "x", ")", " =", " {", "1", "};"));
  EXPECT_THAT(cut(gpt2(), "한국어 텍스트"), ElementsAre("한국어", " 텍스트"));
  EXPECT_THAT(cut(gpt2(), "½Ⅷ٣"), ElementsAre("½Ⅷ٣"));
  EXPECT_THAT(cut(gpt2(), "e\u0301"), ElementsAre("e", "\u0301"));  // a combining mark is no letter
}

TEST(PreTokenizerTest, CountsTheWhiteSpaceOfUnicodeAndNoMore) {
  EXPECT_THAT(cut(gpt2(), "a\u0085\u00a0\u3000"), ElementsAre("a", "\u0085\u00a0\u3000"));
  EXPECT_THAT(cut(gpt2(), "a \u180e!"), ElementsAre("a", " \u180e!"));
  EXPECT_THAT(cut(gpt2(), "\u180e\u180e"), ElementsAre("\u180e\u180e"));
  EXPECT_THAT(cut(gpt2(), "a\u200b!"), ElementsAre("a", "\u200b!"));
}

TEST(PreTokenizerTest, KeepsBytesThatAreNotUtf8AsPiecesOfTheirOwn) {
  EXPECT_THAT(cut(gpt2(), "ab\xff\xfe cd"), ElementsAre("ab", "\xff\xfe", " cd"));
  EXPECT_THAT(cut(gpt2(), "\xe6\xbc"), ElementsAre("\xe6\xbc"));
  // The spaces before the break end their text, so all three stay together.
  EXPECT_THAT(cut(gpt2(),
                  "a   \xff"
                  "b"),
              ElementsAre("a", "   ", "\xff", "b"));
}

TEST(PreTokenizerTest, AppliesRulesOneAfterTheOther) {
  const PreTokenizer both({{R"(\p{N})", false}, {"ab.", true}});
  EXPECT_THAT(cut(both, "12xab.y ab1."), ElementsAre("1", "2", "x", "ab.", "y ab", "1", "."));
}

TEST(PreTokenizerTest, WithoutRulesKeepsTextWhole) {
  EXPECT_THAT(cut(PreTokenizer(), "a b\n"), ElementsAre("a b\n"));
  EXPECT_THAT(cut(PreTokenizer(), ""), ElementsAre());
}

TEST(PreTokenizerTest, PassesOverEmptyMatches) {
  const PreTokenizer empty({{"x*", false}});
  EXPECT_THAT(cut(empty, "aéxxb"), ElementsAre("aé", "xx", "b"));
}

TEST(PreTokenizerTest, SurvivesMegabytesWithoutABreak) {
  for (const char byte : {' ', 'a', '1', '!', '\n'}) {
    const std::string text(3 << 20, byte);
    EXPECT_EQ(cut(gpt2(), text).size(), 1u) << byte;
  }
}

TEST(PreTokenizerTest, NamesAPatternThatDoesNotCompile) {
  try {
    PreTokenizer({{"a(b", false}});
    FAIL();
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("a(b"));
    EXPECT_THAT(error.what(), HasSubstr("parenthesis"));
  }
}

TEST(PreTokenizerTest, StopsAPatternThatExplodes) {
  const PreTokenizer evil({{"(a+a+)+$", false}});
  EXPECT_THROW(cut(evil, std::string(64, 'a') + "b"), DataError);
}

RC_GTEST_PROP(PreTokenizerTest, LosesNoByteOfAnyText, ()) {
  const auto byte = rc::gen::map(rc::gen::inRange(0, 256), [](int value) { return static_cast<char>(value); });
  const auto text = *rc::gen::container<std::string>(byte);
  std::string joined;
  gpt2().for_each(text, [&](std::string_view piece) {
    RC_ASSERT(!piece.empty());
    joined += piece;
  });
  RC_ASSERT(joined == text);
}

}  // namespace
}  // namespace conclave::text
