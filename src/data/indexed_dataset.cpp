// SPDX-License-Identifier: Apache-2.0
#include "data/indexed_dataset.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "data/token_bytes.h"

namespace conclave::data {
namespace {

constexpr int64_t kStride = 256;         // documents per entry of the sparse index
constexpr int64_t kBlockEntries = 8192;  // index entries read at once

[[noreturn]] void damaged(const InputFile& file, int64_t offset, std::string_view why) {
  throw DataError(
      "{}, byte {}: {}. The file is damaged or not what its name says; copy it again or rebuild the pair with "
      "`conclave "
      "data tokenize`",
      file.path(), offset, why);
}

// Calls visit(index, value) for `count` packed little-endian entries from byte `offset`. The arrays start at byte 34,
// so they are not aligned: only memcpy may touch them.
template <typename T, typename Visit>
void for_each_entry(const InputFile& file, int64_t offset, int64_t count, Visit visit) {
  std::vector<T> block(static_cast<size_t>(std::min(count, kBlockEntries)));
  for (int64_t first = 0; first < count; first += kBlockEntries) {
    const auto part = std::span(block).first(static_cast<size_t>(std::min(kBlockEntries, count - first)));
    file.read_at(offset + first * static_cast<int64_t>(sizeof(T)), std::as_writable_bytes(part));
    for (size_t i = 0; i < part.size(); ++i) visit(first + static_cast<int64_t>(i), part[i]);
  }
}

template <typename T>
T header_field(std::span<const std::byte> header, size_t offset) {
  T value;
  std::memcpy(&value, header.data() + offset, sizeof(T));
  return value;
}

}  // namespace

IndexedReader::IndexedReader(const std::string& prefix)
    : prefix_(prefix), idx_(prefix + ".idx"), bin_(prefix + ".bin") {
  read_header();
  read_sequences();
  read_documents();
  read_info();
}

void IndexedReader::read_header() {
  if (idx_.size() < kIndexHeaderBytes)
    damaged(idx_, idx_.size(), fmt::format("the file ends within the {}-byte header", kIndexHeaderBytes));
  std::array<std::byte, kIndexHeaderBytes> header;
  idx_.read_at(0, header);
  if (std::memcmp(header.data(), kIndexMagic, sizeof(kIndexMagic)) != 0)
    damaged(idx_, 0, "the magic is not MMIDIDX, so this is not a Megatron index");
  const auto version = header_field<uint64_t>(header, 9);
  if (version != 1) damaged(idx_, 9, fmt::format("version {} is unknown, only 1 exists", version));
  const auto code = header_field<uint8_t>(header, 17);
  if (code == 6 || code == 7)
    damaged(idx_, 17, fmt::format("dtype code {} is a floating point type, not tokens", code));
  if (code < 1 || code > 8) damaged(idx_, 17, fmt::format("dtype code {} is unknown (1 to 5 and 8 are read)", code));
  type_ = static_cast<TokenType>(code);

  // Counts are compared with what the file can hold before anything is multiplied or reserved.
  const auto sequences = header_field<uint64_t>(header, 18);
  const auto room = static_cast<uint64_t>(idx_.size() - kIndexHeaderBytes);
  if (sequences == 0) damaged(idx_, 18, "the sequence count is 0: the file holds no document");
  if (sequences > room / 12)
    damaged(idx_, 18,
            fmt::format("the sequence count is {}, a file of {} bytes holds at most {}", sequences, idx_.size(),
                        room / 12));
  const auto boundaries = header_field<uint64_t>(header, 26);
  if (boundaries < 2)
    damaged(idx_, 26, fmt::format("the document index has {} entries, at least 2 are needed", boundaries));
  const uint64_t left = room - sequences * 12;
  if (boundaries > left / 8)
    damaged(idx_, 26, fmt::format("the document index has {} entries, the file has room for {}", boundaries, left / 8));
  const uint64_t rest = left - boundaries * 8;  // Megatron's multimodal files append one mode byte per sequence
  if (rest != 0 && rest != sequences)
    damaged(idx_, idx_.size() - static_cast<int64_t>(rest), fmt::format("{} bytes follow the last field", rest));
  sequences_ = static_cast<int64_t>(sequences);
  documents_ = static_cast<int64_t>(boundaries) - 1;
}

void IndexedReader::read_sequences() {
  const int64_t width = token_bytes(type_);
  const int64_t lengths_at = kIndexHeaderBytes, pointers_at = kIndexHeaderBytes + 4 * sequences_;
  std::vector<int32_t> lengths(static_cast<size_t>(std::min(sequences_, kBlockEntries)));
  int64_t expected = 0;
  for_each_entry<int64_t>(idx_, pointers_at, sequences_, [&](int64_t i, int64_t pointer) {
    const auto slot = static_cast<size_t>(i % kBlockEntries);
    if (slot == 0) {
      const auto part = std::span(lengths).first(static_cast<size_t>(std::min(kBlockEntries, sequences_ - i)));
      idx_.read_at(lengths_at + 4 * i, std::as_writable_bytes(part));
    }
    const int64_t length = lengths[slot];
    if (length < 0) damaged(idx_, lengths_at + 4 * i, fmt::format("document {} has the negative length {}", i, length));
    if (pointer != expected)
      damaged(idx_, pointers_at + 8 * i,
              fmt::format("document {} starts at byte {} of the .bin file, the lengths before it say {}", i, pointer,
                          expected));
    if (length > (bin_.size() - expected) / width)
      damaged(
          idx_, lengths_at + 4 * i,
          fmt::format("document {} of {} tokens ends beyond the {} bytes of {}", i, length, bin_.size(), bin_.path()));
    expected += length * width;
  });
  if (expected != bin_.size())
    damaged(bin_, expected,
            fmt::format("the documents end here (document {} is the last) but the file has {} bytes", sequences_ - 1,
                        bin_.size()));
  if (expected == 0) damaged(bin_, 0, "the file is empty: all documents have length 0");
  tokens_ = expected / width;
}

void IndexedReader::read_documents() {
  const int64_t boundaries_at = kIndexHeaderBytes + 12 * sequences_;
  one_to_one_ = documents_ == sequences_;
  int64_t previous = 0;
  for_each_entry<int64_t>(idx_, boundaries_at, documents_ + 1, [&](int64_t i, int64_t boundary) {
    const int64_t at = boundaries_at + 8 * i;
    if (i == 0 && boundary != 0) damaged(idx_, at, fmt::format("the first document boundary is {}, not 0", boundary));
    if (boundary < previous || boundary > sequences_)
      damaged(idx_, at,
              fmt::format("boundary {} of document {} is outside {} ... {}", boundary, i, previous, sequences_));
    if (i == documents_ && boundary != sequences_)
      damaged(idx_, at,
              fmt::format("the last document boundary is {}, the file has {} sequences", boundary, sequences_));
    if (boundary != i) one_to_one_ = false;
    previous = boundary;
  });
  sparse_starts_.clear();
  for (int64_t document = 0; document < documents_; document += kStride) {
    int64_t start = 0;
    load_starts(document, {&start, 1});
    sparse_starts_.push_back(start);
  }
}

void IndexedReader::load_starts(int64_t first, std::span<int64_t> out) const {
  const int64_t width = token_bytes(type_), pointers_at = kIndexHeaderBytes + 4 * sequences_;
  if (one_to_one_) {
    idx_.read_at(pointers_at + 8 * first, std::as_writable_bytes(out));
    for (int64_t& start : out) start /= width;
    return;
  }
  idx_.read_at(kIndexHeaderBytes + 12 * sequences_ + 8 * first, std::as_writable_bytes(out));
  for (int64_t& start : out) {
    const int64_t sequence = start;
    start = tokens_;
    if (sequence == sequences_) continue;
    idx_.read_at(pointers_at + 8 * sequence, std::as_writable_bytes(std::span(&start, 1)));
    start /= width;
  }
}

int64_t IndexedReader::document_start(int64_t document) const {
  check(document >= 0 && document <= documents_, "document number within the file");
  if (document == documents_) return tokens_;
  int64_t start = 0;
  load_starts(document, {&start, 1});
  return start;
}

int64_t IndexedReader::document_of(int64_t position) const {
  check(position >= 0 && position < tokens_, "token position within the file");
  const auto above = std::upper_bound(sparse_starts_.begin(), sparse_starts_.end(), position);
  const int64_t first = (above - sparse_starts_.begin() - 1) * kStride;
  std::vector<int64_t> starts(static_cast<size_t>(std::min(kStride, documents_ - first)));
  load_starts(first, starts);
  return first + (std::upper_bound(starts.begin(), starts.end(), position) - starts.begin()) - 1;
}

std::vector<int64_t> IndexedReader::starts_between(int64_t first, int64_t last) const {
  std::vector<int64_t> found;
  int64_t document = document_of(first) + 1;
  std::vector<int64_t> block;
  for (bool more = true; more && document < documents_; document += kStride) {
    block.resize(static_cast<size_t>(std::min(kStride, documents_ - document)));
    load_starts(document, block);
    for (const int64_t start : block) {
      more = start < last;
      if (!more) break;
      if (found.empty() || start > found.back()) found.push_back(start);
    }
  }
  return found;
}

void IndexedReader::read(int64_t document, int64_t offset, std::span<int32_t> out) const {
  const int64_t start = document_start(document), length = document_start(document + 1) - start;
  const auto count = static_cast<int64_t>(out.size());
  check(offset >= 0 && count <= length && offset <= length - count, "the range read lies within the document");
  read_tokens(start + offset, out);
}

void IndexedReader::read_tokens(int64_t first, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  check(first >= 0 && count <= tokens_ && first <= tokens_ - count, "the range read lies within the file");
  const int64_t width = token_bytes(type_);
  std::vector<std::byte> raw(static_cast<size_t>(count * width));
  bin_.read_at(first * width, raw);
  const auto wrong = widen(type_, raw, limit_, out);
  if (wrong) refuse_token(first + wrong->position, wrong->token);
}

void IndexedReader::refuse_token(int64_t position, int64_t token) const {
  const int64_t document = document_of(position);
  throw DataError(
      "{}, byte {}: token {} in document {} (its token number {}) is outside the vocabulary 0 ... {}. The file was "
      "made "
      "with another tokenizer or is damaged: tokenize the text again, or set model.vocab_size to the tokenizer's size",
      bin_.path(), position * token_bytes(type_), token, document, position - document_start(document), limit_ - 1);
}

}  // namespace conclave::data
