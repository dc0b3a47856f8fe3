// SPDX-License-Identifier: Apache-2.0
#include "data/indexed_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>

#include "core/error.h"
#include "token_files.h"

namespace conclave::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST(IndexedDatasetGolden, WriterGivesTheBytesOfMegatron) {
  const TemporaryDirectory directory;
  write_documents(directory / "golden", golden_documents(), 16);
  EXPECT_EQ(read_file(directory / "golden.bin"), golden_bin());
  EXPECT_EQ(read_file(directory / "golden.idx"), golden_idx());
}

TEST(IndexedDatasetGolden, ReaderGivesTheDocumentsOfMegatron) {
  const TemporaryDirectory directory;
  write_file(directory / "golden.bin", golden_bin());
  write_file(directory / "golden.idx", golden_idx());
  IndexedReader reader(directory / "golden");
  EXPECT_EQ(reader.documents(), 4);
  EXPECT_EQ(reader.tokens(), 15);
  EXPECT_FALSE(reader.info().has_value());
  for (int64_t d = 0; d < reader.documents(); ++d) {
    std::vector<int32_t> document(static_cast<size_t>(reader.document_length(d)));
    reader.read(d, 0, document);
    EXPECT_EQ(document, golden_documents()[static_cast<size_t>(d)]);
  }
  std::vector<int32_t> across(5);
  reader.read_tokens(2, across);
  EXPECT_THAT(across, ElementsAre(7, 0, 8, 9, 0));
  std::vector<int32_t> part(2);
  reader.read(2, 3, part);
  EXPECT_THAT(part, ElementsAre(13, 14));
  EXPECT_THAT(reader.starts_between(0, 15), ElementsAre(4, 7, 13));
  EXPECT_THAT(reader.starts_between(4, 13), ElementsAre(7));
  EXPECT_EQ(reader.document_of(3), 0);
  EXPECT_EQ(reader.document_of(4), 1);
  reader.check_tokens(16);
}

TEST(IndexedDatasetGolden, ModeBytesOfMultimodalFilesAreSkipped) {
  const TemporaryDirectory directory;
  auto idx = golden_idx();
  idx.resize(idx.size() + 4);
  write_file(directory / "golden.bin", golden_bin());
  write_file(directory / "golden.idx", idx);
  EXPECT_EQ(IndexedReader(directory / "golden").tokens(), 15);
}

TEST(IndexedDatasetTest, WhatIsWrittenIsReadBackForEveryWidth) {
  rc::check([] {
    const auto vocab = *rc::gen::element<int64_t>(2, 300, 65499, 65500, int64_t{1} << 31);
    const auto documents = *rc::gen::nonEmpty(rc::gen::container<std::vector<std::vector<int32_t>>>(
        rc::gen::nonEmpty(rc::gen::container<std::vector<int32_t>>(
            rc::gen::map(rc::gen::inRange<int64_t>(0, vocab), [](int64_t id) { return static_cast<int32_t>(id); })))));
    const TemporaryDirectory directory;
    write_documents(directory / "x", documents, vocab);
    IndexedReader reader(directory / "x");
    RC_ASSERT(reader.type() == (vocab < 65500 ? TokenType::kU16 : TokenType::kI32));
    RC_ASSERT(reader.documents() == static_cast<int64_t>(documents.size()));
    for (int64_t d = 0; d < reader.documents(); ++d) {
      std::vector<int32_t> document(static_cast<size_t>(reader.document_length(d)));
      reader.read(d, 0, document);
      RC_ASSERT(document == documents[static_cast<size_t>(d)]);
      RC_ASSERT(reader.document_of(reader.document_start(d)) == d);
    }
    reader.check_tokens(vocab);
  });
}

// More documents than one block of the sparse index and than one block of validation.
TEST(IndexedDatasetTest, FindsDocumentsAmongManyThousands) {
  const TemporaryDirectory directory;
  std::vector<std::vector<int32_t>> documents;
  std::vector<int64_t> starts;
  int64_t start = 0;
  for (int i = 0; i < 20000; ++i) {
    documents.emplace_back(static_cast<size_t>(1 + i % 3), i % 7);
    starts.push_back(start);
    start += 1 + i % 3;
  }
  write_documents(directory / "x", documents, 7);
  const IndexedReader reader(directory / "x");
  ASSERT_EQ(reader.tokens(), start);
  for (int64_t d = 0; d < 20000; d += 37) {
    EXPECT_EQ(reader.document_start(d), starts[static_cast<size_t>(d)]);
    EXPECT_EQ(reader.document_of(starts[static_cast<size_t>(d)]), d);
  }
  EXPECT_EQ(reader.starts_between(0, start), std::vector<int64_t>(starts.begin() + 1, starts.end()));
}

// Documents made of several sequences (Megatron's --split-sentences), one of them empty, and all integer types.
TEST(IndexedDatasetTest, ReadsDocumentsOfSeveralSequences) {
  const TemporaryDirectory directory;
  auto idx = golden_idx();
  idx.resize(34 + 12 * 4);
  idx[26] = 4;  // three documents: sequences 0-1, none, 2-3
  for (const uint8_t boundary : {0, 2, 2, 4}) {
    idx.push_back(boundary);
    idx.resize(idx.size() + 7);
  }
  write_file(directory / "x.bin", golden_bin());
  write_file(directory / "x.idx", idx);
  const IndexedReader reader(directory / "x");
  EXPECT_EQ(reader.documents(), 3);
  EXPECT_EQ(reader.document_length(0), 7);
  EXPECT_EQ(reader.document_length(1), 0);
  EXPECT_EQ(reader.document_length(2), 8);
  EXPECT_THAT(reader.starts_between(0, 15), ElementsAre(7));
}

TEST(IndexedDatasetTest, ReadsEveryIntegerType) {
  for (const auto& [code, width] :
       std::vector<std::pair<uint8_t, size_t>>{{1, 1}, {2, 1}, {3, 2}, {4, 4}, {5, 8}, {8, 2}}) {
    const TemporaryDirectory directory;
    auto idx = from_hex(
        "4d4d49444944580000 0100000000000000 08 0100000000000000 0200000000000000"
        "02000000 0000000000000000 0000000000000000 0100000000000000");
    idx[17] = code;
    Bytes bin(2 * width);
    bin[0] = 100;
    bin[width] = 7;
    write_file(directory / "x.bin", bin);
    write_file(directory / "x.idx", idx);
    std::vector<int32_t> tokens(2);
    IndexedReader(directory / "x").read_tokens(0, tokens);
    EXPECT_THAT(tokens, ElementsAre(100, 7)) << int{code};
  }
}

TEST(IndexedDatasetTest, SidecarSaysWhoMadeTheTokens) {
  const TemporaryDirectory directory;
  write_documents(directory / "x", golden_documents(), 16, "0123abcd");
  const IndexedReader reader(directory / "x");
  ASSERT_TRUE(reader.info().has_value());
  EXPECT_EQ(reader.info()->tokenizer_hash, "0123abcd");
  EXPECT_EQ(reader.info()->vocab_size, 16);
  EXPECT_EQ(reader.info()->tokens, 15);
  EXPECT_EQ(reader.info()->documents, 4);
  EXPECT_EQ(reader.info()->end_of_document, 0);
}

TEST(IndexedDatasetTest, TheScanIsRememberedUntilTheFilesChange) {
  const TemporaryDirectory directory;
  write_documents(directory / "x", golden_documents(), 16);
  IndexedReader(directory / "x").check_tokens(16);
  ASSERT_TRUE(fs::exists(directory / "x.ok"));
  const auto bin_time = fs::last_write_time(directory / "x.bin");
  // Another token, same size and time: the fingerprint differs.
  auto bytes = golden_bin();
  bytes[28] = 99;
  write_file(directory / "x.bin", bytes);
  fs::last_write_time(directory / "x.bin", bin_time);
  EXPECT_THROW(IndexedReader(directory / "x").check_tokens(16), DataError);
  // A valid memory is used: the lie in it is believed by the scan, and still caught when the token is read.
  write_file(directory / "x.bin", golden_bin());
  IndexedReader(directory / "x").check_tokens(16);
  std::ifstream stream(directory / "x.ok");
  std::string text(std::istreambuf_iterator<char>(stream), {});
  const std::string truth = "\"largest_token\":15";
  ASSERT_NE(text.find(truth), std::string::npos);
  text.replace(text.find(truth), truth.size(), "\"largest_token\":5");
  std::ofstream(directory / "x.ok") << text;
  IndexedReader fooled(directory / "x");
  EXPECT_NO_THROW(fooled.check_tokens(10));
  std::vector<int32_t> all(15);
  EXPECT_THROW(fooled.read_tokens(0, all), DataError);
  // Nonsense in it means: scan again.
  for (const std::string nonsense : {"", "{", "[]", "{\"scanned\": 3}", "{\"largest_token\": 1}"}) {
    std::ofstream(directory / "x.ok") << nonsense;
    EXPECT_THROW(IndexedReader(directory / "x").check_tokens(15), DataError) << nonsense;
  }
}

TEST(IndexedDatasetTest, FingerprintChangesWithContentNotWithName) {
  const TemporaryDirectory directory;
  write_documents(directory / "x", golden_documents(), 16);
  write_documents(directory / "y", golden_documents(), 16);
  auto documents = golden_documents();
  documents[3][0] = 14;
  write_documents(directory / "z", documents, 16);
  EXPECT_EQ(IndexedReader(directory / "x").fingerprint(), IndexedReader(directory / "y").fingerprint());
  EXPECT_NE(IndexedReader(directory / "x").fingerprint(), IndexedReader(directory / "z").fingerprint());
}

TEST(IndexedDatasetTest, FingerprintOfALargeFileSeesItsFirstAndLastBytes) {
  const TemporaryDirectory directory;
  write_documents(directory / "x", {std::vector<int32_t>(3'000'000, 1)}, 16);
  const auto before = IndexedReader(directory / "x").fingerprint();
  for (const size_t at : {size_t{0}, size_t{5'999'998}}) {
    auto bytes = read_file(directory / "x.bin");
    bytes[at] = 2;
    write_file(directory / "y.bin", bytes);
    fs::copy_file(directory / "x.idx", directory / "y.idx", fs::copy_options::overwrite_existing);
    EXPECT_NE(IndexedReader(directory / "y").fingerprint(), before) << at;
  }
}

// Root ignores permissions: be nobody for a while.
class WithoutPrivileges {
 public:
  WithoutPrivileges() { EXPECT_EQ(seteuid(before_ == 0 ? 65534 : before_), 0); }
  ~WithoutPrivileges() { EXPECT_EQ(seteuid(before_), 0); }

 private:
  uid_t before_ = geteuid();
};

TEST(IndexedDatasetTest, WorksOnAReadOnlyDirectory) {
  const TemporaryDirectory directory;
  fs::create_directory(directory / "d");
  write_documents(directory / "d/x", golden_documents(), 16);
  fs::permissions(directory / "d", fs::perms(0555));
  fs::permissions(directory / "", fs::perms::all);
  {
    const WithoutPrivileges nobody;
    EXPECT_NO_THROW(IndexedReader(directory / "d/x").check_tokens(16));
  }
  EXPECT_FALSE(fs::exists(directory / "d/x.ok"));
  fs::permissions(directory / "d", fs::perms::all);
}

std::string message_of(const std::function<void()>& act, ExitCode code) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(IndexedDatasetTest, SaysThatADirectoryIsUnreadable) {
  const TemporaryDirectory directory;
  fs::create_directory(directory / "d");
  write_documents(directory / "d/x", golden_documents(), 16);
  fs::permissions(directory / "d", fs::perms::none);
  std::string message;
  {
    const WithoutPrivileges nobody;
    message = message_of([&] { IndexedReader(directory / "d/x"); }, ExitCode::kIo);
  }
  EXPECT_THAT(message, HasSubstr("permission denied"));
  EXPECT_THAT(message, HasSubstr(directory / "d/x.idx"));
  fs::permissions(directory / "d", fs::perms::all);
}

TEST(IndexedDatasetTest, AFileThatShrinksOrChangesDuringTheRunIsAnError) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 1000);
  const IndexedReader reader(directory / "x");
  std::vector<int32_t> tokens(10);
  reader.read_tokens(0, tokens);
  fs::resize_file(directory / "x.bin", 400);
  auto message = message_of([&] { reader.read_tokens(500, tokens); }, ExitCode::kData);
  EXPECT_THAT(message, HasSubstr("x.bin"));
  EXPECT_THAT(message, HasSubstr("changed while in use"));
  EXPECT_THROW(reader.read_tokens(0, tokens), DataError);  // also where bytes are still there
}

TEST(IndexedDatasetTest, AFileRewrittenInPlaceIsAnErrorAndARenamedOneIsNot) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 1000);
  write_counting(directory / "y", 1000);
  const IndexedReader x(directory / "x"), y(directory / "y");
  std::vector<int32_t> tokens(3);
  fs::last_write_time(directory / "x.bin", fs::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_THROW(x.read_tokens(0, tokens), DataError);
  write_counting(directory / "y", 5);  // publishes by rename: the open files stay whole
  y.read_tokens(990, tokens);
  EXPECT_THAT(tokens, ElementsAre(990, 991, 992));
}

// --- writing ---

TEST(IndexedWriterTest, LeavesNothingBehindWithoutFinish) {
  const TemporaryDirectory directory;
  {
    IndexedWriter writer(directory / "x", 16);
    writer.add_document(golden_documents()[0]);
    EXPECT_FALSE(fs::exists(directory / "x.bin"));
  }
  EXPECT_TRUE(fs::is_empty(directory / ""));
}

TEST(IndexedWriterTest, AnInterruptedWriteLeavesTheOldDatasetAlone) {
  const TemporaryDirectory directory;
  write_documents(directory / "x", golden_documents(), 16);
  {
    IndexedWriter writer(directory / "x", 16);
    writer.add_document(golden_documents()[0]);
    EXPECT_THROW(writer.add_document(std::vector<int32_t>{16}), DataError);
  }
  EXPECT_EQ(read_file(directory / "x.bin"), golden_bin());
  EXPECT_EQ(IndexedReader(directory / "x").tokens(), 15);
}

TEST(IndexedWriterTest, TakesOverStagingFilesOfAKilledWriter) {
  const TemporaryDirectory directory;
  write_file(directory / "x.bin.tmp", Bytes(1000, 7));
  write_file(directory / "x.idx.tmp", Bytes(1000, 7));
  write_documents(directory / "x", golden_documents(), 16);
  EXPECT_EQ(read_file(directory / "x.bin"), golden_bin());
  EXPECT_EQ(read_file(directory / "x.idx"), golden_idx());
}

TEST(IndexedWriterTest, ReplacesAnOlderDatasetAndForgetsItsScan) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 100);
  IndexedReader(directory / "x").check_tokens(100);
  write_documents(directory / "x", golden_documents(), 16);
  EXPECT_FALSE(fs::exists(directory / "x.ok"));
  EXPECT_EQ(IndexedReader(directory / "x").tokens(), 15);
}

TEST(IndexedWriterTest, AFailedRenameLeavesNoOldIndexBesideNewTokens) {
  const TemporaryDirectory directory;
  write_counting(directory / "x", 100);
  fs::remove(directory / "x.json");
  fs::create_directory(directory / "x.json");  // no file can take this name
  IndexedWriter writer(directory / "x", 16);
  writer.add_document(golden_documents()[0]);
  EXPECT_THAT(message_of([&] { writer.finish({}); }, ExitCode::kIo), HasSubstr("x.json.tmp"));
  EXPECT_FALSE(fs::exists(directory / "x.idx"));
}

TEST(IndexedWriterTest, RefusesASecondWriterOfTheSameFiles) {
  const TemporaryDirectory directory;
  IndexedWriter first(directory / "x", 16);
  EXPECT_THAT(message_of([&] { IndexedWriter(directory / "x", 16); }, ExitCode::kIo), HasSubstr("another process"));
  first.add_document(golden_documents()[0]);
  first.finish({});
  EXPECT_EQ(IndexedReader(directory / "x").tokens(), 4);
}

TEST(IndexedWriterTest, RefusesWhatItCannotStore) {
  const TemporaryDirectory directory;
  IndexedWriter writer(directory / "x", 16);
  EXPECT_THROW(writer.finish({}), DataError);
  EXPECT_THROW(writer.add_document({}), DataError);
  EXPECT_THROW(writer.add_document(std::vector<int32_t>{-1}), DataError);
  EXPECT_THAT(message_of(
                  [&] {
                    writer.add_document(std::vector<int32_t>{3, 16});
                  },
                  ExitCode::kData),
              HasSubstr("token 1 of document 0 is 16"));
  EXPECT_THAT(message_of([&] { IndexedWriter(directory / "absent/x", 16); }, ExitCode::kIo),
              HasSubstr("absent/x.bin.tmp"));
}

// The file size limit of the process stands in for a full device: both end a write half way.
TEST(IndexedWriterTest, AFullDeviceNamesBytesNeededAndFreeAndLeavesNothing) {
  const TemporaryDirectory directory;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1500000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto message = message_of(
      [&] {
        IndexedWriter writer(directory / "x", 16);
        const std::vector<int32_t> document(100000, 3);
        for (int i = 0; i < 20; ++i) writer.add_document(document);
        writer.finish({});
      },
      ExitCode::kIo);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, HasSubstr("x.bin.tmp"));
  EXPECT_THAT(message, ::testing::ContainsRegex("At least [1-9][0-9]* more bytes are needed, [0-9]+ are free"));
  EXPECT_TRUE(fs::is_empty(directory / ""));
}

}  // namespace
}  // namespace conclave::data
