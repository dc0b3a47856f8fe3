// SPDX-License-Identifier: Apache-2.0
// Ids that Hugging Face `tokenizers` gives (tools/make_tokenizer_golden.py).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "text/input_files.h"
#include "text/tokenizer.h"

namespace conclave::text {
namespace {

class TokenizerGoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerGoldenTest, GivesTheIdsOfHuggingFace) {
  const std::string stem = std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/tokenizer/" + GetParam();
  const auto tokenizer = Tokenizer::load(stem + ".json");
  const auto cases = nlohmann::json::parse(read_whole_file(stem + ".ids.json", 1 << 20));
  ASSERT_GE(cases.size(), 20u);
  for (const auto& golden : cases) {
    const auto text = golden["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text, SpecialText::kTokens), golden["tokens"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(tokenizer.encode(text, SpecialText::kPlain), golden["plain"].get<std::vector<int32_t>>()) << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Made, TokenizerGoldenTest, ::testing::Values("gpt2", "llama3", "neox", "prefix", "digits"));

}  // namespace
}  // namespace conclave::text
