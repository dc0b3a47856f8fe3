// SPDX-License-Identifier: Apache-2.0
#include "app/tokenize_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

#include "app/data_command.h"
#include "core/error.h"
#include "data/indexed_dataset.h"
#include "text/input_files.h"
#include "text/scratch_directory.h"

namespace conclave::app {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using text::ScratchDirectory;

std::string line(int i) { return "{\"text\":\"document " + std::to_string(i) + std::string(i % 50, '.') + "\"}\n"; }

TokenizeResult tokenize(const std::vector<std::string>& inputs, const TokenizeJob& job) {
  text::TextReader reader(inputs);
  return tokenize_files(reader, text::Tokenizer::bytes(), job, [](int64_t) {});
}

std::vector<std::string> documents(const std::string& prefix) {
  const data::IndexedReader reader(prefix);
  std::vector<std::string> texts;
  for (int64_t i = 0; i < reader.documents(); ++i) {
    std::vector<int32_t> ids(reader.document_length(i));
    reader.read(i, 0, ids);
    texts.push_back(text::Tokenizer::bytes().decode(ids));
  }
  return texts;
}

bool wrote_anything(const ScratchDirectory& directory) {
  for (const auto& entry : std::filesystem::directory_iterator(directory.path())) {
    if (entry.path().filename().string().starts_with("out")) return true;
  }
  return false;
}

TEST(TokenizeFilesTest, WritesDocumentsInTheirOrderEachClosed) {
  const ScratchDirectory directory;
  const auto a = directory.write("a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"\"}\n{\"text\":\"two\"}\n");
  const auto b = directory.write("b.txt", "three");
  const auto result = tokenize({b, a}, {directory / "out", 256, 0, 2});
  EXPECT_THAT(documents(directory / "out"), ElementsAre("three<|endoftext|>", "one<|endoftext|>", "two<|endoftext|>"));
  EXPECT_EQ(result.train.documents, 3);
  EXPECT_EQ(result.train.bytes, 11);
  EXPECT_EQ(result.train.tokens, 14);
  EXPECT_EQ(result.empty_documents, 1);
  const auto info = data::IndexedReader(directory / "out").info();
  EXPECT_EQ(info->tokenizer_hash, text::Tokenizer::bytes().hash());
  EXPECT_EQ(info->end_of_document, 256);
}

TEST(TokenizeFilesTest, ClosesNothingWhenNotAsked) {
  const ScratchDirectory directory;
  tokenize({directory.write("a.txt", "one")}, {directory / "out", std::nullopt, 0, 1});
  EXPECT_THAT(documents(directory / "out"), ElementsAre("one"));
  EXPECT_EQ(data::IndexedReader(directory / "out").info()->end_of_document, std::nullopt);
}

TEST(TokenizeFilesTest, GivesTheSameFilesForAnyNumberOfWorkers) {
  const ScratchDirectory directory;
  std::string lines;
  for (int i = 0; lines.size() < (12u << 20); ++i) lines += line(i);  // several batches
  const auto input = directory.write("a.jsonl", lines);
  const auto bytes_of = [&](int workers) {
    tokenize({input}, {directory / "out", 256, 0.1, workers});
    std::string all;
    for (const char* suffix : {".bin", ".idx", ".json", "-valid.bin", "-valid.idx", "-valid.json"}) {
      all += text::read_whole_file((directory / "out") + suffix, 1 << 30);
    }
    return all;
  };
  const std::string one = bytes_of(1);
  EXPECT_TRUE(bytes_of(2) == one);
  EXPECT_TRUE(bytes_of(5) == one);
}

TEST(TokenizeFilesTest, SplitsByTheTextAlone) {
  const ScratchDirectory directory;
  std::string forward, backward;
  for (int i = 0; i < 2000; ++i) {
    forward += line(i);
    backward = line(i) + backward;
  }
  tokenize({directory.write("f.jsonl", forward)}, {directory / "f", 256, 0.1, 2});
  tokenize({directory.write("b.jsonl", backward)}, {directory / "b", 256, 0.1, 2});
  auto valid = documents(directory / "f-valid");
  EXPECT_THAT(documents(directory / "b-valid"), ::testing::UnorderedElementsAreArray(valid));
  EXPECT_GT(valid.size(), 140u);
  EXPECT_LT(valid.size(), 260u);
  EXPECT_EQ(valid.size() + documents(directory / "f").size(), 2000u);
  for (int i = 0; i < 2000; ++i) {
    EXPECT_LE(is_validation(line(i), 0.05), is_validation(line(i), 0.1)) << i;
  }
}

TEST(TokenizeFilesTest, ABrokenLineLeavesNoFiles) {
  const ScratchDirectory directory;
  std::string lines;
  for (int i = 0; i < 3000; ++i) lines += line(i);
  const auto input = directory.write("a.jsonl", lines + "{\"text\": 5}\n");
  for (const int workers : {1, 3}) {
    try {
      tokenize({input}, {directory / "out", 256, 0.1, workers});
      FAIL();
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr("a.jsonl:3001:"));
    }
    EXPECT_FALSE(wrote_anything(directory));
  }
}

TEST(TokenizeFilesTest, RefusesAPartWithoutDocuments) {
  const ScratchDirectory directory;
  const auto empty = directory.write("e.jsonl", "{\"text\":\"\"}\n");
  const auto single = directory.write("s.txt", "one");
  EXPECT_THROW(tokenize({empty}, {directory / "out", 256, 0, 1}), DataError);
  EXPECT_THROW(tokenize({single}, {directory / "out", 256, 1e-9, 1}), DataError);
  EXPECT_FALSE(wrote_anything(directory));
  EXPECT_THROW(tokenize({single}, {directory / "no/such/out", 256, 0, 1}), UsageError);
}

int command(const std::vector<std::string>& words) {
  CLI::App app("conclave");
  std::function<int()> run = [] { return -1; };
  add_data_command(app, run);
  app.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // CLI11 takes them last first
  return run();
}

TEST(DataCommandTest, TrainsTokenizesAndInspects) {
  const ScratchDirectory directory;
  std::string lines;
  for (int i = 0; i < 500; ++i) lines += line(i);
  const auto input = directory.write("a.jsonl", lines);
  const std::string tokenizer = directory / "tokenizer.json";
  EXPECT_EQ(command({"data", "train-tokenizer", input, "--vocab-size", "300", "--output", tokenizer}), 0);
  EXPECT_EQ(command({"data", "tokenize", input, "--tokenizer", tokenizer, "--output", directory / "out",
                     "--valid-share", "0.1"}),
            0);
  EXPECT_EQ(command({"data", "inspect", directory / "out"}), 0);
  const auto info = data::IndexedReader(directory / "out-valid").info();
  EXPECT_EQ(info->tokenizer_hash, text::Tokenizer::load(tokenizer).hash());
  EXPECT_EQ(info->end_of_document, text::Tokenizer::load(tokenizer).end_of_document());
  EXPECT_EQ(
      command({"data", "tokenize", input, "--tokenizer", "bytes", "--output", directory / "plain", "--no-append-eod"}),
      0);
  EXPECT_EQ(documents(directory / "plain")[0], "document 0");
}

TEST(DataCommandTest, RefusesATokenizerWithoutEndOfDocument) {
  const ScratchDirectory directory;
  text::TokenizerParts parts = text::Tokenizer::bytes().parts();
  parts.tokens[256] = parts.added[0].content = "<other>";
  text::Tokenizer(parts).save(directory / "t.json");
  const auto input = directory.write("a.txt", "one");
  try {
    command({"data", "tokenize", input, "--tokenizer", directory / "t.json", "--output", directory / "out"});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), HasSubstr("--no-append-eod"));
  }
}

TEST(DataCommandTest, ShowsAnExampleInEveryHelp) {
  CLI::App app("conclave");
  std::function<int()> run;
  add_data_command(app, run);
  CLI::App* data = app.get_subcommand("data");
  EXPECT_THAT(data->help(), HasSubstr("Example:"));
  for (const char* name : {"tokenize", "train-tokenizer", "inspect"}) {
    EXPECT_THAT(data->get_subcommand(name)->help(), HasSubstr(std::string("conclave data ") + name)) << name;
  }
}

}  // namespace
}  // namespace conclave::app
