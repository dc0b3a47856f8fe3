// SPDX-License-Identifier: Apache-2.0
#include "data/indexed_writer.h"

#include <unistd.h>

#include <limits>
#include <utility>

#include "core/error.h"

namespace conclave::data {
namespace {

template <typename T>
void put(StagedFile& file, T value) {
  file.write(std::as_bytes(std::span(&value, 1)));
}

}  // namespace

IndexedWriter::IndexedWriter(std::string prefix, int64_t vocab_size)
    : prefix_(std::move(prefix)),
      vocab_size_(vocab_size),
      type_(vocab_size < 65500 ? TokenType::kU16 : TokenType::kI32),
      bin_(prefix_ + ".bin"),
      idx_(prefix_ + ".idx") {
  check(vocab_size > 0 && vocab_size <= int64_t{1} << 31, "a vocabulary size of 1 ... 2^31");
}

void IndexedWriter::add_document(std::span<const int32_t> tokens) {
  if (tokens.empty()) throw DataError("{}: document {} has no tokens; leave empty documents out", prefix_, documents());
  if (tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    throw DataError("{}: document {} has {} tokens, the format ends at 2^31-1; split it", prefix_, documents(),
                    tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size_)
      throw DataError(
          "{}: token {} of document {} is {}, outside the vocabulary 0 ... {}; tokenizer and vocabulary size do "
          "not belong together",
          prefix_, i, documents(), tokens[i], vocab_size_ - 1);
  }
  if (type_ == TokenType::kU16) {
    const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
    bin_.write(std::as_bytes(std::span(narrow)));
  } else {
    bin_.write(std::as_bytes(tokens));
  }
  lengths_.push_back(static_cast<int32_t>(tokens.size()));
  tokens_ += static_cast<int64_t>(tokens.size());
}

void IndexedWriter::write_index() {
  idx_.write(std::as_bytes(std::span(kIndexMagic)));
  put(idx_, uint64_t{1});
  put(idx_, static_cast<uint8_t>(type_));
  put(idx_, static_cast<uint64_t>(documents()));
  put(idx_, static_cast<uint64_t>(documents() + 1));
  for (const int32_t length : lengths_) put(idx_, length);
  int64_t offset = 0;
  for (const int32_t length : lengths_) {
    put(idx_, offset);
    offset += length * token_bytes(type_);
  }
  for (int64_t boundary = 0; boundary <= documents(); ++boundary) put(idx_, boundary);
}

TokenFileInfo IndexedWriter::finish(const WriterMetadata& metadata) {
  if (lengths_.empty()) throw DataError("{}: no document was added; is the input empty?", prefix_);
  const TokenFileInfo info{metadata.tokenizer_hash, vocab_size_, tokens_, documents(), metadata.end_of_document};
  write_index();
  StagedFile json(prefix_ + ".json");
  const std::string text = to_json(info);
  json.write(std::as_bytes(std::span(text)));
  bin_.finish();
  idx_.finish();
  json.finish();
  unlink((prefix_ + ".idx").c_str());  // an older index must never describe the new tokens
  unlink((prefix_ + ".ok").c_str());
  sync_directory_of(prefix_ + ".idx");
  bin_.publish();
  json.publish();
  idx_.publish();
  return info;
}

}  // namespace conclave::data
