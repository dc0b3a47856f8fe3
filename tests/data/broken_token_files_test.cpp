// SPDX-License-Identifier: Apache-2.0
// Every way we know to break a .bin/.idx pair: each ends in one message that names the file and the byte or document.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <functional>

#include "core/error.h"
#include "token_files.h"

namespace conclave::data {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

struct Pair {
  Bytes idx = golden_idx();
  Bytes bin = golden_bin();

  template <typename T>
  void set(size_t at, T value) {
    std::memcpy(idx.data() + at, &value, sizeof(T));
  }
};

struct Case {
  std::string name;
  std::function<void(Pair&)> break_it;
  std::vector<std::string> told;  // what the message must name
};
void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

std::vector<Case> cases() {
  std::vector<Case> all;
  // Offsets of the golden index: lengths at 34, pointers at 50, boundaries at 82, end at 122.
  for (const auto& [field, end] : std::vector<std::pair<std::string, size_t>>{{"nothing", 0},
                                                                              {"part_of_magic", 5},
                                                                              {"magic", 9},
                                                                              {"part_of_version", 12},
                                                                              {"version", 17},
                                                                              {"dtype", 18},
                                                                              {"part_of_sequence_count", 22},
                                                                              {"sequence_count", 26},
                                                                              {"part_of_boundary_count", 33}})
    all.push_back({"truncated_after_" + field,
                   [end = end](Pair& p) { p.idx.resize(end); },
                   {"x.idx, byte " + std::to_string(end), "header"}});
  for (const auto& [field, end] : std::vector<std::pair<std::string, size_t>>{{"header", 34},
                                                                              {"first_length", 38},
                                                                              {"part_of_a_length", 40},
                                                                              {"lengths", 50},
                                                                              {"first_pointer", 58},
                                                                              {"part_of_a_pointer", 79}})
    all.push_back({"truncated_after_" + field,
                   [end = end](Pair& p) { p.idx.resize(end); },
                   {"x.idx, byte 18", "sequence count"}});
  for (const auto& [field, end] : std::vector<std::pair<std::string, size_t>>{
           {"pointers", 82}, {"first_boundary", 90}, {"part_of_a_boundary", 117}, {"all_but_one_byte", 121}})
    all.push_back({"truncated_after_" + field,
                   [end = end](Pair& p) { p.idx.resize(end); },
                   {"x.idx, byte 26", "document index"}});
  for (const size_t extra : {1, 2, 3, 5, 8})
    all.push_back(
        {"extra_bytes_" + std::to_string(extra), [extra](Pair& p) { p.idx.resize(122 + extra); }, {"x.idx, byte 122"}});
  for (const size_t size : {0, 1, 2, 28, 29})
    all.push_back({"bin_of_" + std::to_string(size),
                   [size](Pair& p) { p.bin.resize(size); },
                   {"x.idx, byte ", "x.bin", "document "}});
  for (const size_t size : {31, 32, 60})
    all.push_back(
        {"bin_of_" + std::to_string(size), [size](Pair& p) { p.bin.resize(size); }, {"x.bin, byte 30", "document 3"}});
  all.push_back({"magic_of_another_format", [](Pair& p) { p.idx[2] = 'X'; }, {"x.idx, byte 0", "magic"}});
  all.push_back({"magic_without_nul", [](Pair& p) { p.idx[8] = 1; }, {"x.idx, byte 0", "magic"}});
  for (const uint64_t version : {uint64_t{0}, uint64_t{2}, ~uint64_t{0}})
    all.push_back({"version_" + std::to_string(version),
                   [version](Pair& p) { p.set(9, version); },
                   {"x.idx, byte 9", "version"}});
  for (const int code : {0, 6, 7, 9, 255})
    all.push_back({"dtype_" + std::to_string(code),
                   [code](Pair& p) { p.idx[17] = static_cast<uint8_t>(code); },
                   {"x.idx, byte 17", "dtype"}});
  for (const int code : {1, 4})  // a known type of the wrong width
    all.push_back({"wrong_width_" + std::to_string(code),
                   [code](Pair& p) { p.idx[17] = static_cast<uint8_t>(code); },
                   {"document 1", "x.idx, byte 58"}});
  all.push_back({"wrong_width_5", [](Pair& p) { p.idx[17] = 5; }, {"document 0", "x.idx, byte 34"}});
  for (const uint64_t count :
       {uint64_t{0}, uint64_t{5}, uint64_t{8}, uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 60,
        uint64_t{1} << 61, uint64_t{1} << 62, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} / 12 + 1})
    all.push_back({"sequence_count_" + std::to_string(count),
                   [count](Pair& p) { p.set(18, count); },
                   {"x.idx, byte ", count == 5 ? "document index" : "sequence count is"}});
  for (const uint64_t count : {uint64_t{0}, uint64_t{1}, uint64_t{4}, uint64_t{6}, uint64_t{1} << 32, uint64_t{1} << 60,
                               uint64_t{1} << 61, (uint64_t{1} << 61) + 5, uint64_t{1} << 63, ~uint64_t{0}})
    all.push_back(
        {"boundary_count_" + std::to_string(count), [count](Pair& p) { p.set(26, count); }, {"x.idx, byte "}});
  all.push_back({"no_documents_at_all",
                 [](Pair& p) {
                   p.idx.resize(42);
                   p.set(18, uint64_t{0});
                   p.set(26, uint64_t{1});
                   p.set(34, int64_t{0});
                   p.bin.clear();
                 },
                 {"x.idx, byte 18", "no document"}});
  all.push_back({"only_empty_documents",
                 [](Pair& p) {
                   for (const size_t i : {0, 1, 2, 3}) p.set(34 + 4 * i, 0), p.set(50 + 8 * i, int64_t{0});
                   p.bin.clear();
                 },
                 {"x.bin, byte 0", "empty"}});
  for (const size_t document : {0, 1, 3}) {
    const auto name = "document " + std::to_string(document);
    const auto at = std::to_string(34 + 4 * document), pointer_at = std::to_string(50 + 8 * document);
    for (const int32_t length : {-1, std::numeric_limits<int32_t>::min()})
      all.push_back({"negative_length_" + std::to_string(document) + "_" + std::to_string(-int64_t{length}),
                     [=](Pair& p) { p.set(34 + 4 * document, length); },
                     {"x.idx, byte " + at, name, "negative"}});
    all.push_back({"huge_length_" + std::to_string(document),
                   [=](Pair& p) { p.set(34 + 4 * document, std::numeric_limits<int32_t>::max()); },
                   {"x.idx, byte " + at, name, "beyond"}});
    for (const int64_t pointer : {int64_t{-2}, int64_t{1}, int64_t{30}, int64_t{1} << 40,
                                  std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()})
      all.push_back({"pointer_" + std::to_string(document) + "_" + std::to_string(static_cast<uint64_t>(pointer)),
                     [=](Pair& p) { p.set(50 + 8 * document, pointer); },
                     {"x.idx, byte " + pointer_at, name}});
  }
  all.push_back(
      {"overlapping_documents", [](Pair& p) { p.set(50 + 8 * 2, int64_t{8}); }, {"x.idx, byte 66", "document 2"}});
  all.push_back({"swapped_documents",
                 [](Pair& p) { p.set(50 + 8, int64_t{14}), p.set(50 + 16, int64_t{8}); },
                 {"x.idx, byte 58", "document 1"}});
  all.push_back({"a_gap_between_documents", [](Pair& p) { p.set(34, 3); }, {"x.idx, byte 58", "document 1"}});
  all.push_back({"last_document_too_short", [](Pair& p) { p.set(46, 1); }, {"x.bin, byte 28", "document 3"}});
  all.push_back({"first_boundary_not_0", [](Pair& p) { p.set(82, int64_t{1}); }, {"x.idx, byte 82"}});
  all.push_back({"last_boundary_not_s", [](Pair& p) { p.set(114, int64_t{3}); }, {"x.idx, byte 114"}});
  all.push_back({"last_boundary_beyond_s", [](Pair& p) { p.set(114, int64_t{5}); }, {"x.idx, byte 114"}});
  all.push_back({"boundary_falls", [](Pair& p) { p.set(98, int64_t{0}); }, {"x.idx, byte 98", "document 2"}});
  all.push_back({"boundary_negative", [](Pair& p) { p.set(90, int64_t{-1}); }, {"x.idx, byte 90", "document 1"}});
  all.push_back({"boundary_2_61", [](Pair& p) { p.set(106, int64_t{1} << 61); }, {"x.idx, byte 106", "document 3"}});
  for (const uint16_t token : {uint16_t{16}, uint16_t{17}, uint16_t{65535}}) {
    all.push_back({"last_document_token_" + std::to_string(token),
                   [token](Pair& p) { std::memcpy(p.bin.data() + 28, &token, 2); },
                   {"x.bin, byte 28", "token " + std::to_string(token), "document 3", "number 1"}});
    all.push_back({"first_token_" + std::to_string(token),
                   [token](Pair& p) { std::memcpy(p.bin.data(), &token, 2); },
                   {"x.bin, byte 0", "token " + std::to_string(token), "document 0", "number 0"}});
  }
  all.push_back({"negative_i16_token",
                 [](Pair& p) { p.idx[17] = 3, p.bin[9] = 0x80; },
                 {"x.bin, byte 8", "document 1", "-3276"}});
  return all;
}

class BrokenTokenFilesTest : public ::testing::TestWithParam<Case> {};

TEST_P(BrokenTokenFilesTest, IsRefusedWithFileAndPlace) {
  const TemporaryDirectory directory;
  Pair pair;
  GetParam().break_it(pair);
  write_file(directory / "x.idx", pair.idx);
  write_file(directory / "x.bin", pair.bin);
  try {
    IndexedReader reader(directory / "x");
    reader.check_tokens(16);
    FAIL() << "a broken file was accepted";
  } catch (const DataError& error) {
    EXPECT_EQ(static_cast<int>(error.code()), 65);
    for (const auto& told : GetParam().told) EXPECT_THAT(error.what(), HasSubstr(told));
    EXPECT_THAT(error.what(), HasSubstr("tokenize"));  // what to do
  }
  EXPECT_FALSE(fs::exists(directory / "x.ok"));
}

INSTANTIATE_TEST_SUITE_P(All, BrokenTokenFilesTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

struct PlaceCase {
  std::string name;
  std::function<void(const TemporaryDirectory&)> break_it;
  std::vector<std::string> told;
};

class BrokenTokenFilesPlaceTest : public ::testing::TestWithParam<PlaceCase> {};

TEST_P(BrokenTokenFilesPlaceTest, IsRefusedWithItsName) {
  const TemporaryDirectory directory;
  write_documents(directory / "x", golden_documents(), 16);
  GetParam().break_it(directory);
  try {
    IndexedReader reader(directory / "x");
    FAIL() << "accepted";
  } catch (const DataError& error) {
    for (const auto& told : GetParam().told) EXPECT_THAT(error.what(), HasSubstr(told));
  }
}

void make_fifo(const std::string& path) {
  fs::remove(path);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
}

void make_directory(const std::string& path) {
  fs::remove(path);
  fs::create_directory(path);
}

void write_text(const std::string& path, const std::string& text) { write_file(path, Bytes(text.begin(), text.end())); }

INSTANTIATE_TEST_SUITE_P(
    All, BrokenTokenFilesPlaceTest,
    ::testing::Values(
        PlaceCase{"no_idx", [](auto& d) { fs::remove(d / "x.idx"); }, {"x.idx", "no such file"}},
        PlaceCase{"no_bin", [](auto& d) { fs::remove(d / "x.bin"); }, {"x.bin", "no such file"}},
        PlaceCase{"directory_as_idx", [](auto& d) { make_directory(d / "x.idx"); }, {"x.idx", "is a directory"}},
        PlaceCase{"directory_as_bin", [](auto& d) { make_directory(d / "x.bin"); }, {"x.bin", "is a directory"}},
        PlaceCase{"fifo_as_idx", [](auto& d) { make_fifo(d / "x.idx"); }, {"x.idx", "is a FIFO"}},
        PlaceCase{"fifo_as_bin", [](auto& d) { make_fifo(d / "x.bin"); }, {"x.bin", "is a FIFO"}},
        PlaceCase{"device_as_bin",
                  [](auto& d) { fs::remove(d / "x.bin"), fs::create_symlink("/dev/zero", d / "x.bin"); },
                  {"x.bin", "is a device"}},
        PlaceCase{"dangling_link",
                  [](auto& d) { fs::remove(d / "x.bin"), fs::create_symlink("/nowhere", d / "x.bin"); },
                  {"x.bin", "no such file"}},
        PlaceCase{"sidecar_no_json", [](auto& d) { write_text(d / "x.json", "{"); }, {"x.json"}},
        PlaceCase{"sidecar_list", [](auto& d) { write_text(d / "x.json", "[]"); }, {"x.json"}},
        PlaceCase{"sidecar_empty", [](auto& d) { write_text(d / "x.json", "{}"); }, {"x.json", "tokenizer_hash"}},
        PlaceCase{"sidecar_hash_number",
                  [](auto& d) { write_text(d / "x.json", R"({"tokenizer_hash": 3})"); },
                  {"x.json", "tokenizer_hash"}},
        PlaceCase{"sidecar_float",
                  [](auto& d) { write_text(d / "x.json", R"({"tokenizer_hash": "", "vocab_size": 1.5})"); },
                  {"x.json", "vocab_size"}},
        PlaceCase{
            "sidecar_negative",
            [](auto& d) { write_text(d / "x.json", R"({"tokenizer_hash": "", "vocab_size": 16, "tokens": -1})"); },
            {"x.json", "tokens"}},
        PlaceCase{
            "sidecar_overflow",
            [](auto& d) { write_text(d / "x.json", R"({"tokenizer_hash": "", "vocab_size": 18446744073709551615})"); },
            {"x.json", "vocab_size"}},
        PlaceCase{"sidecar_of_other_tokens",
                  [](auto& d) {
                    write_text(d / "x.json",
                               R"({"tokenizer_hash": "", "vocab_size": 16, "tokens": 16, "documents": 4})");
                  },
                  {"x.json", "16 tokens", "do not belong together"}},
        PlaceCase{
            "sidecar_huge", [](auto& d) { write_text(d / "x.json", std::string(2 << 20, ' ') + "{}"); }, {"x.json"}},
        PlaceCase{"sidecar_deep", [](auto& d) { write_text(d / "x.json", std::string(500000, '[')); }, {"x.json"}}),
    [](const auto& info) { return info.param.name; });

// Any single damaged byte of the index, and any prefix of it, is refused or changes nothing that is read: never a
// crash.
TEST(BrokenTokenFilesSweepTest, NoDamagedByteOfTheIndexGetsThrough) {
  const TemporaryDirectory directory;
  write_file(directory / "x.bin", golden_bin());
  for (size_t at = 0; at < golden_idx().size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      auto idx = golden_idx();
      idx[at] = static_cast<uint8_t>(idx[at] ^ flip);
      write_file(directory / "x.idx", idx);
      try {
        IndexedReader reader(directory / "x");
        EXPECT_EQ(reader.tokens(), 15) << at;
        // What may differ: which sequences make up a document (a boundary that is still in order), and i16 for u16.
        EXPECT_TRUE(at == 17 || at >= 82) << at << " " << flip;
      } catch (const DataError&) {
      }
    }
  }
}

}  // namespace
}  // namespace conclave::data
