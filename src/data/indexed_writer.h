// SPDX-License-Identifier: Apache-2.0
// Writes token files in Megatron's indexed format (PREFIX.bin, PREFIX.idx, one sequence per document) and the
// PREFIX.json beside them. All three appear together at finish() or not at all. It does not tokenize and adds no
// end-of-document token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/indexed_dataset.h"
#include "data/staged_file.h"

namespace conclave::data {

struct WriterMetadata {
  std::string tokenizer_hash;
  std::optional<int64_t> end_of_document;
};

class IndexedWriter {
 public:
  // Tokens are stored as u16 when vocab_size < 65500 (Megatron's limit), else as i32. The directory must exist; throws
  // IoError.
  IndexedWriter(std::string prefix, int64_t vocab_size);

  // Throws DataError for an id outside the vocabulary or an empty document; IoError when the device is full (bytes
  // needed and free; the staging files are removed).
  void add_document(std::span<const int32_t> tokens);

  // Brings everything to the device and gives the files their final names, the index last: a reader that finds one
  // finds whole files. An older dataset of that name is replaced; its index is removed first. Throws DataError when no
  // document was added. Call once.
  TokenFileInfo finish(const WriterMetadata& metadata);

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(lengths_.size()); }

 private:
  void write_index();

  std::string prefix_;
  int64_t vocab_size_;
  TokenType type_;
  StagedFile bin_;
  StagedFile idx_;
  std::vector<int32_t> lengths_;
  int64_t tokens_ = 0;
};

}  // namespace conclave::data
