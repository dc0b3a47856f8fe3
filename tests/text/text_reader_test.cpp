// SPDX-License-Identifier: Apache-2.0
#include "text/text_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "text/compress.h"
#include "text/scratch_directory.h"

namespace conclave::text {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> read_all(const std::vector<std::string>& inputs, ReaderOptions options = {}) {
  TextReader reader(inputs, options);
  std::vector<std::string> texts;
  for (std::string text; reader.next_text(text);) texts.push_back(text);
  EXPECT_EQ(reader.bytes_read(), reader.total_bytes());
  return texts;
}

TEST(TextReaderTest, TakesATextFileAsOneDocument) {
  const ScratchDirectory directory;
  const auto path = directory.write("a.txt", "one\ntwo\xff\n");
  EXPECT_THAT(read_all({path}), ElementsAre("one\ntwo\xff\n"));
}

TEST(TextReaderTest, TakesALineOfJsonAsOneDocument) {
  const ScratchDirectory directory;
  const auto path = directory.write(
      "a.jsonl",
      "{\"text\": \"one\\nline\", \"n\": 1}\r\n\n  \n{\"text\":\"\"}\n{\"text\":\"한 \\u00e9 \\ud83d\\ude00\"}");
  EXPECT_THAT(read_all({path}), ElementsAre("one\nline", "", "한 é 😀"));
}

TEST(TextReaderTest, FollowsAKeyPath) {
  const ScratchDirectory directory;
  const auto path = directory.write("a.jsonl", R"({"a": {"b": "inner"}, "a.b": "no"})");
  EXPECT_THAT(read_all({path}, {"a.b"}), ElementsAre("inner"));
}

TEST(TextReaderTest, DecompressesWhateverTheSizeOfItsBuffers) {
  const ScratchDirectory directory;
  std::string lines;
  std::vector<std::string> expected;
  for (int i = 0; i < 3000; ++i) {
    expected.push_back(std::to_string(i * 7919) + std::string(i % 700, 'x'));
    lines += "{\"text\":\"" + expected.back() + "\"}\n";
  }
  ASSERT_GT(lines.size(), size_t{1} << 20);
  EXPECT_EQ(read_all({directory.write("p.jsonl", lines)}), expected);
  EXPECT_EQ(read_all({directory.write("g.jsonl.gz", gzip(lines))}), expected);
  EXPECT_EQ(read_all({directory.write("z.jsonl.zst", zstd(lines))}), expected);
  EXPECT_THAT(read_all({directory.write("t.txt.zst", zstd(lines))}), ElementsAre(lines));
  EXPECT_THAT(read_all({directory.write("t.txt.gz", gzip(lines))}), ElementsAre(lines));
}

TEST(TextReaderTest, ReadsSeveralCompressedPartsAsOneFile) {
  const ScratchDirectory directory;
  EXPECT_THAT(read_all({directory.write("a.txt.gz", gzip("one ") + gzip("") + gzip("two"))}), ElementsAre("one two"));
  EXPECT_THAT(read_all({directory.write("b.txt.zst", zstd("one ") + zstd("") + zstd("two"))}), ElementsAre("one two"));
}

TEST(TextReaderTest, WalksDirectoriesInTheOrderOfTheirPaths) {
  const ScratchDirectory directory;
  directory.write("d/b.txt", "b");
  directory.write("d/a/z.txt", "z");
  directory.write("d/c.jsonl", "{\"text\":\"c\"}");
  directory.write("d/README.md", "not text for us");
  EXPECT_THAT(read_all({directory / "d"}), ElementsAre("z", "b", "c"));
}

TEST(TextReaderTest, ExpandsGlobsAndKeepsTheOrderOfTheInputs) {
  const ScratchDirectory directory;
  for (const char* name : {"x2", "x1", "y", "w[1]"}) directory.write(std::string(name) + ".txt", name);
  EXPECT_THAT(read_all({directory / "y.txt", directory / "x?.txt"}), ElementsAre("y", "x1", "x2"));
  EXPECT_THAT(read_all({directory / "w[1].txt"}), ElementsAre("w[1]")) << "a file of that name comes before a glob";
}

TEST(TextReaderTest, DropsAByteOrderMark) {
  const ScratchDirectory directory;
  EXPECT_THAT(read_all({directory.write("a.txt", "\xef\xbb\xbfhi")}), ElementsAre("hi"));
  EXPECT_THAT(read_all({directory.write("a.jsonl", "\xef\xbb\xbf{\"text\":\"hi\"}")}), ElementsAre("hi"));
}

TEST(TextReaderTest, GivesAnEmptyFileAsAnEmptyDocumentAndNoLines) {
  const ScratchDirectory directory;
  EXPECT_THAT(read_all({directory.write("a.txt", "")}), ElementsAre(""));
  EXPECT_THAT(read_all({directory.write("a.jsonl", "")}), ElementsAre());
  EXPECT_THAT(read_all({directory.write("b.txt.gz", gzip("")), directory.write("b.txt.zst", zstd(""))}),
              ElementsAre("", ""));
}

TEST(TextReaderTest, CountsLinesFromOneInEveryFile) {
  const ScratchDirectory directory;
  const auto a = directory.write("a.jsonl", "\n{}\n");
  const auto b = directory.write("b.jsonl", "{}\n");
  TextReader reader({a, b});
  RawDocument document;
  ASSERT_TRUE(reader.next(document));
  EXPECT_EQ(document.line, 2);
  EXPECT_EQ(*document.path, a);
  ASSERT_TRUE(reader.next(document));
  EXPECT_EQ(document.line, 1);
  EXPECT_EQ(*document.path, b);
  EXPECT_FALSE(reader.next(document));
  EXPECT_FALSE(reader.next(document));
}

}  // namespace
}  // namespace conclave::text
