// SPDX-License-Identifier: Apache-2.0
#include "text/added_tokens.h"

#include <gtest/gtest.h>

namespace conclave::text {
namespace {

std::string cut(const AddedTokens& tokens, std::string_view text, SpecialText special) {
  std::string out;
  tokens.cut(text, special, [&](std::string_view part, std::optional<int32_t> id) {
    if (id) {
      out.append("<").append(std::to_string(*id)).append(">");
    } else {
      out.append("[").append(part).append("]");
    }
  });
  return out;
}

TEST(AddedTokensTest, TakeTheLeftmostThenTheLongest) {
  const AddedTokens tokens({{1, "ab", true, false}, {2, "abc", true, false}, {3, "bcd", true, false}});
  EXPECT_EQ(cut(tokens, "xabcdab", SpecialText::kTokens), "[x]<2>[d]<1>");
  EXPECT_EQ(cut(tokens, "bcdabbcd", SpecialText::kTokens), "<3><1><3>");
}

TEST(AddedTokensTest, LeaveSpecialTextPlainWhenAsked) {
  const AddedTokens tokens({{1, "<s>", true, false}, {2, "  ", false, false}});
  EXPECT_EQ(cut(tokens, "a<s>  b", SpecialText::kPlain), "[a<s>]<2>[b]");
  EXPECT_EQ(cut(tokens, "a<s>  b", SpecialText::kTokens), "[a]<1><2>[b]");
}

TEST(AddedTokensTest, LookForNormalizedOnesInASecondPass) {
  const AddedTokens tokens({{1, "abc", false, true}, {2, "c", false, false}});
  EXPECT_EQ(cut(tokens, "abcabc", SpecialText::kPlain), "[ab]<2>[ab]<2>");
}

TEST(AddedTokensTest, GiveNothingForNothing) {
  EXPECT_EQ(cut(AddedTokens(), "", SpecialText::kTokens), "");
  EXPECT_EQ(cut(AddedTokens(), "abc", SpecialText::kTokens), "[abc]");
  const AddedTokens tokens({{1, "ab", false, false}});
  EXPECT_EQ(cut(tokens, "", SpecialText::kTokens), "");
  EXPECT_EQ(cut(tokens, "aab", SpecialText::kTokens), "[a]<1>");
  EXPECT_EQ(cut(tokens, "a", SpecialText::kTokens), "[a]");
}

}  // namespace
}  // namespace conclave::text
