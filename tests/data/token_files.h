// SPDX-License-Identifier: Apache-2.0
// Small token files for tests: a directory that removes itself, the golden pair of the format, and raw bytes in and
// out.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "data/indexed_writer.h"

namespace conclave::data {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "conclave-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

using Bytes = std::vector<uint8_t>;

inline Bytes from_hex(const std::string& text) {
  Bytes bytes;
  std::string digits;
  for (const char c : text)
    if (c != ' ') digits += c;
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return bytes;
}

inline void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// Written by Megatron's own writer for the documents [5,6,7,0] [8,9,0] [10,11,12,13,14,0] [15,0].
inline Bytes golden_bin() { return from_hex("05000600070000000800090000000a000b000c000d000e0000000f000000"); }
inline Bytes golden_idx() {
  return from_hex(
      "4d4d49444944580000 0100000000000000 08 0400000000000000 0500000000000000"
      "04000000 03000000 06000000 02000000"
      "0000000000000000 0800000000000000 0e00000000000000 1a00000000000000"
      "0000000000000000 0100000000000000 0200000000000000 0300000000000000 0400000000000000");
}
inline std::vector<std::vector<int32_t>> golden_documents() {
  return {{5, 6, 7, 0}, {8, 9, 0}, {10, 11, 12, 13, 14, 0}, {15, 0}};
}

inline TokenFileInfo write_documents(const std::string& prefix, const std::vector<std::vector<int32_t>>& documents,
                                     int64_t vocab_size, const std::string& tokenizer_hash = "abcd") {
  IndexedWriter writer(prefix, vocab_size);
  for (const auto& document : documents) writer.add_document(document);
  return writer.finish({tokenizer_hash, 0});
}

// One document that counts 0, 1, 2, ...: a token is its own position.
inline void write_counting(const std::string& prefix, int32_t tokens) {
  std::vector<int32_t> document(static_cast<size_t>(tokens));
  std::iota(document.begin(), document.end(), 0);
  write_documents(prefix, {document}, int64_t{1} << 20);
}

}  // namespace conclave::data
