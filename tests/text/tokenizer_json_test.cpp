// SPDX-License-Identifier: Apache-2.0
#include "text/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>

#include "core/error.h"
#include "text/byte_level.h"
#include "text/scratch_directory.h"

namespace conclave::text {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

// Bytes 0-255, ab = 256, abc = 257, end of document = 258.
Json good() {
  Json vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[bytes_to_characters(std::string(1, static_cast<char>(byte)))] = byte;
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  const Json added = {{"id", 258}, {"content", "<|endoftext|>"}, {"special", true}};
  return {{"added_tokens", Json::array({added})},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array({"a b", Json::array({"ab", "c"})})}}}};
}

TEST(TokenizerJsonTest, LoadsTheSmallestFileThatMeansSomething) {
  const auto tokenizer = Tokenizer::from_json(good().dump(), "t.json");
  EXPECT_EQ(tokenizer.vocab_size(), 259);
  EXPECT_EQ(tokenizer.encode("abcab"), (std::vector<int32_t>{257, 256}));
  EXPECT_EQ(tokenizer.end_of_document(), 258);
}

TEST(TokenizerJsonTest, AcceptsWhatCannotMatterForBytes) {
  Json json = good();
  json["model"]["byte_fallback"] = true;
  json["model"]["unk_token"] = "<unk>";
  json["model"]["fuse_unk"] = true;
  json["model"]["dropout"] = nullptr;
  json["model"]["continuing_subword_prefix"] = "";
  json["normalizer"] = nullptr;
  json["post_processor"] = {{"type", "Sequence"},
                            {"processors", {{{"type", "ByteLevel"}}, {{"type", "TemplateProcessing"}}}}};
  EXPECT_EQ(Tokenizer::from_json(json.dump(), "t.json").hash(), Tokenizer::from_json(good().dump(), "t.json").hash());
}

TEST(TokenizerJsonTest, WithoutAnEndOfDocumentHasNone) {
  Json json = good();
  json["added_tokens"][0]["content"] = "<other>";
  EXPECT_EQ(Tokenizer::from_json(json.dump(), "t.json").end_of_document(), std::nullopt);
}

struct Broken {
  std::string name;
  std::function<void(Json&)> change;
  std::string reason;  // must be in the message
};
void PrintTo(const Broken& param, std::ostream* out) { *out << param.name; }

Json split(const Json& pattern, const char* behavior = "Isolated") {
  const Json step = {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", false}};
  const Json last = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({step, last})}};
}

std::vector<Broken> broken() {
  return {
      {"NoModel", [](Json& j) { j.erase("model"); }, "`model`"},
      {"OtherModel", [](Json& j) { j["model"]["type"] = "WordPiece"; }, "WordPiece"},
      {"ModelWithoutType", [](Json& j) { j["model"].erase("type"); }, "without a type"},
      {"NoVocab", [](Json& j) { j["model"].erase("vocab"); }, "model.vocab"},
      {"NoMerges", [](Json& j) { j["model"].erase("merges"); }, "model.merges"},
      {"MissingByte",
       [](Json& j) {
         j["model"]["vocab"].erase("Ġ");
         j["model"]["vocab"]["<s>"] = 32;
       },
       "0x20"},
      {"DuplicateId", [](Json& j) { j["model"]["vocab"]["ab"] = 257; }, "257 is given twice"},
      {"IdGap", [](Json& j) { j["added_tokens"][0]["id"] = 260; }, "no token has id 258"},
      {"NegativeId", [](Json& j) { j["model"]["vocab"]["ab"] = -1; }, "id -1"},
      {"HugeId", [](Json& j) { j["model"]["vocab"]["ab"] = int64_t{1} << 40; }, "1099511627776"},
      {"IdIsText", [](Json& j) { j["model"]["vocab"]["ab"] = "256"; }, "`ab` must be an integer"},
      {"MergeOfUnknownToken", [](Json& j) { j["model"]["merges"].push_back("zz a"); }, "merge 2 needs the token `zz`"},
      {"MergeIntoUnknownToken", [](Json& j) { j["model"]["merges"].push_back("a a"); }, "`aa`"},
      {"MergeTwice", [](Json& j) { j["model"]["merges"].push_back("a b"); }, "merge 2 repeats"},
      {"MergeOfThree", [](Json& j) { j["model"]["merges"][0] = "a b c"; }, "merge 0 must be"},
      {"MergeOfOne", [](Json& j) { j["model"]["merges"][0] = "ab"; }, "merge 0 must be"},
      {"MergeIsNumber", [](Json& j) { j["model"]["merges"][1] = 7; }, "merge 1 must be"},
      {"Dropout", [](Json& j) { j["model"]["dropout"] = 0.1; }, "dropout"},
      {"WordSuffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix"},
      {"SubwordPrefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, "continuing_subword_prefix"},
      {"FlagIsNumber", [](Json& j) { j["model"]["ignore_merges"] = 1; }, "ignore_merges"},
      {"Normalizer",
       [](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer NFC"},
      {"Truncation",
       [](Json& j) {
         j["truncation"] = {{"max_length", 512}};
       },
       "truncation"},
      {"NoPreTokenizer", [](Json& j) { j.erase("pre_tokenizer"); }, "pre_tokenizer null"},
      {"OtherPreTokenizer",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}};
       },
       "Metaspace"},
      {"StepInSequence",
       [](Json& j) {
         j["pre_tokenizer"] = split({{"Regex", "a"}});
         j["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Punctuation"}};
       },
       "Punctuation"},
      {"SequenceWithoutByteLevel",
       [](Json& j) {
         j["pre_tokenizer"] = split({{"Regex", "a"}});
         j["pre_tokenizer"]["pretokenizers"].erase(1);
       },
       "Split as step 1 of 1"},
      {"PrefixSpaceInSequence",
       [](Json& j) {
         j["pre_tokenizer"] = split({{"Regex", "a"}});
         j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true;
       },
       "add_prefix_space"},
      {"SplitBehavior",
       [](Json& j) {
         j["pre_tokenizer"] = split({{"Regex", "a"}}, "Removed");
       },
       "Removed"},
      {"SplitInvert",
       [](Json& j) {
         j["pre_tokenizer"] = split({{"Regex", "a"}});
         j["pre_tokenizer"]["pretokenizers"][0]["invert"] = true;
       },
       "invert"},
      {"SplitWithoutPattern", [](Json& j) { j["pre_tokenizer"] = split(nullptr); }, "pattern"},
      {"SplitPatternDoesNotCompile",
       [](Json& j) {
         j["pre_tokenizer"] = split({{"Regex", "a(b"}});
       },
       "a(b"},
      {"Decoder",
       [](Json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       },
       "decoder WordPiece"},
      {"NoDecoder", [](Json& j) { j.erase("decoder"); }, "decoder null"},
      {"PostProcessor",
       [](Json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}};
       },
       "BertProcessing"},
      {"AddedTokenStripsSpace", [](Json& j) { j["added_tokens"][0]["lstrip"] = true; }, "lstrip"},
      {"AddedTokenWithoutContent", [](Json& j) { j["added_tokens"][0].erase("content"); }, "content"},
      {"AddedTokenEmpty", [](Json& j) { j["added_tokens"][0]["content"] = ""; }, "content"},
      {"AddedTokenTwice",
       [](Json& j) {
         j["added_tokens"].push_back(j["added_tokens"][0]);
         j["added_tokens"][1]["id"] = 259;
       },
       "given twice"},
      {"AddedTokenContradictsVocab", [](Json& j) { j["added_tokens"][0]["content"] = "ab"; }, "gives it 256"},
      {"AddedTokensNoList", [](Json& j) { j["added_tokens"] = 3; }, "added_tokens"},
      {"NotAnObject", [](Json& j) { j = Json::array({1}); }, "object"},
  };
}

class TokenizerJsonBrokenTest : public ::testing::TestWithParam<Broken> {};

TEST_P(TokenizerJsonBrokenTest, IsRefusedWithPathAndReason) {
  Json json = good();
  GetParam().change(json);
  try {
    Tokenizer::from_json(json.dump(), "some/t.json");
    FAIL() << "accepted";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), ::testing::StartsWith("some/t.json: "));
    EXPECT_THAT(error.what(), HasSubstr(GetParam().reason));
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerJsonBrokenTest, ::testing::ValuesIn(broken()),
                         [](const auto& info) { return info.param.name; });

TEST(TokenizerJsonTest, RefusesTextThatIsNotJson) {
  const std::string whole = good().dump();
  for (const std::string& text :
       {std::string(), std::string("{"), whole.substr(0, whole.size() / 2), whole + "x", std::string("\xff\xfe{}")}) {
    EXPECT_THROW(Tokenizer::from_json(text, "t.json"), DataError) << text.substr(0, 20);
  }
}

TEST(TokenizerJsonTest, EveryTruncationIsRefused) {
  const std::string whole = good().dump();
  for (size_t size = 0; size < whole.size(); size += 7) {
    EXPECT_THROW(Tokenizer::from_json(whole.substr(0, size), "t.json"), DataError) << size;
  }
}

TEST(TokenizerJsonTest, SaysWhichFileIsMissing) {
  try {
    Tokenizer::load("/nonexistent/tokenizer.json");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("/nonexistent/tokenizer.json"));
  }
  EXPECT_THROW(Tokenizer::load("/"), IoError);
}

}  // namespace
}  // namespace conclave::text
