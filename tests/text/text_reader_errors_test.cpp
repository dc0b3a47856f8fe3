// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <functional>
#include <ostream>

#include "core/error.h"
#include "text/compress.h"
#include "text/scratch_directory.h"
#include "text/text_reader.h"

namespace conclave::text {
namespace {

using ::testing::HasSubstr;

std::string flipped(std::string bytes, size_t at) {
  bytes[at] = static_cast<char>(bytes[at] ^ 0x55);
  return bytes;
}

std::string noise(size_t size) {
  std::string text;
  for (uint64_t state = 1; text.size() < size; state = state * 6364136223846793005u + 1)
    text += static_cast<char>('!' + (state >> 40) % 64);
  return text;
}

struct Bad {
  std::string name;
  std::string file;
  std::string content;
  std::string reason;  // must be in the message beside the path
  std::string key = "text";
  int64_t largest = 1 << 20;
};
void PrintTo(const Bad& param, std::ostream* out) { *out << param.name; }

const std::string kGood = "{\"text\":\"ok\"}\n";

std::vector<Bad> bad_files() {
  const std::string gz = gzip(noise(5000));
  const std::string zst = zstd(noise(5000));
  return {
      {"BrokenJson", "a.jsonl", kGood + kGood + "{\"text\": \"cut\n", ":3:"},
      {"NotJson", "a.jsonl", "hello\n", ":1:"},
      {"TrailingJunk", "a.jsonl", kGood + "{\"text\":\"a\"} {}\n", ":2:"},
      {"MissingKey", "a.jsonl", kGood + "{\"body\":\"a\",\"id\":1}\n", ":2: no member `text`"},
      {"MissingKeyNamesWhatIsThere", "a.jsonl", "{\"body\":\"a\",\"id\":1}\n", "`body`, `id`"},
      {"TextIsNumber", "a.jsonl", "{\"text\":5}\n", "not number"},
      {"TextIsNull", "a.jsonl", "{\"text\":null}\n", "not null"},
      {"LineIsArray", "a.jsonl", "[\"text\"]\n", "array"},
      {"InnerIsText", "a.jsonl", "{\"a\":\"x\"}\n", "`b`", "a.b"},
      {"InnerMissing", "a.jsonl", "{\"a\":{}}\n", "a.b", "a.b"},
      {"InvalidUtf8InJson", "a.jsonl", kGood + "{\"text\":\"\xff\"}\n", ":2: not JSON in UTF-8"},
      {"LoneSurrogate", "a.jsonl", "{\"text\":\"\\ud800\"}\n", ":1:"},
      {"DeepNesting", "a.jsonl", std::string(300000, '['), ":1:"},
      {"GzipCutOff", "a.txt.gz", gz.substr(0, gz.size() / 2), "cut off"},
      {"GzipWithoutItsLastByte", "a.txt.gz", gz.substr(0, gz.size() - 1), "cut off"},
      {"GzipEmptyFile", "a.txt.gz", "", "cut off"},
      {"GzipFlippedBit", "a.txt.gz", flipped(gz, gz.size() - 6), "broken gzip"},
      {"GzipIsPlainText", "a.txt.gz", "plain text", "broken gzip"},
      {"GzipJunkBehind", "a.txt.gz", gz + "junk", "broken gzip"},
      {"ZstdCutOff", "a.txt.zst", zst.substr(0, zst.size() / 2), "cut off"},
      {"ZstdWithoutItsLastByte", "a.txt.zst", zst.substr(0, zst.size() - 1), "cut off"},
      {"ZstdEmptyFile", "a.txt.zst", "", "cut off"},
      {"ZstdIsPlainText", "a.txt.zst", "plain text", "broken zstd"},
      {"ZstdCutOffSecondFrame", "a.jsonl.zst", zstd(kGood) + zst.substr(0, 20), "cut off"},
      {"LineTooLong", "a.jsonl", kGood + std::string(200, ' '), ":2: a document of more than 100 bytes", "text", 100},
      {"TextTooLong", "a.txt", std::string(101, 'x'), "more than 100 bytes", "text", 100},
      {"GzipBomb", "a.txt.gz", gzip(std::string(50 << 20, '\0')), "more than 1048576 bytes"},
      {"ZstdBomb", "a.jsonl.zst", zstd(std::string(50 << 20, 'x')), ":1: a document of more than 1048576 bytes"},
  };
}

class TextReaderBadFileTest : public ::testing::TestWithParam<Bad> {};

TEST_P(TextReaderBadFileTest, IsRefusedWithPathAndReason) {
  const Bad& bad = GetParam();
  const ScratchDirectory directory;
  const auto path = directory.write(bad.file, bad.content);
  TextReader reader({path}, {bad.key, bad.largest});
  try {
    for (std::string text; reader.next_text(text);) {
    }
    FAIL() << "accepted";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), ::testing::StartsWith(path));
    EXPECT_THAT(error.what(), HasSubstr(bad.reason));
  }
}

INSTANTIATE_TEST_SUITE_P(All, TextReaderBadFileTest, ::testing::ValuesIn(bad_files()),
                         [](const auto& info) { return info.param.name; });

template <typename Expected>
std::string refusal(const std::vector<std::string>& inputs) {
  try {
    TextReader reader(inputs);
    RawDocument document;
    while (reader.next(document)) {
    }
  } catch (const Expected& error) {
    return error.what();
  }
  return "accepted";
}

TEST(TextReaderErrorsTest, NameTheInputThatGivesNothing) {
  const ScratchDirectory directory;
  const auto known = directory.write("a.txt", "a");
  const auto unknown = directory.write("b.pdf", "b");
  std::filesystem::create_directory(directory / "empty");
  EXPECT_THAT(refusal<DataError>({directory / "missing.txt"}), HasSubstr("missing.txt does not exist"));
  EXPECT_THAT(refusal<DataError>({directory / "x*.txt"}), HasSubstr("nothing matches"));
  EXPECT_THAT(refusal<DataError>({unknown}), HasSubstr(".jsonl.zst"));
  EXPECT_THAT(refusal<DataError>({directory / "empty"}), HasSubstr("hold no file"));
  EXPECT_THAT(refusal<DataError>({known, directory.path()}), HasSubstr("read twice"));
}

TEST(TextReaderErrorsTest, RefuseWhatIsNoFile) {
  const ScratchDirectory directory;
  const std::string pipe = directory / "p.txt";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(refusal<IoError>({pipe}), HasSubstr("not a regular file"));
  const std::string dangling = directory / "d.txt";
  std::filesystem::create_symlink(directory / "nowhere", dangling);
  EXPECT_THAT(refusal<DataError>({dangling}), HasSubstr("d.txt"));
}

TEST(TextReaderErrorsTest, NameAFileThatMayNotBeRead) {
  const ScratchDirectory directory;
  const auto path = directory.write("a.txt", "a");
  std::filesystem::permissions(path, std::filesystem::perms::none);
  if (std::ifstream(path)) GTEST_SKIP() << "this user reads everything";
  EXPECT_THAT(refusal<IoError>({path}), HasSubstr("a.txt"));
}

}  // namespace
}  // namespace conclave::text
