// SPDX-License-Identifier: Apache-2.0
// Reads token files in Megatron's indexed format: PREFIX.bin holds the tokens, PREFIX.idx where each document starts,
// and our own PREFIX.json (absent from files made elsewhere) says which tokenizer made them. Opening checks every field
// of the index against the real sizes of both files. It does not shuffle, cut or mix: see source.h and mixture.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/input_file.h"

namespace conclave::data {

// dtype codes of the format. Floats (6 and 7) are no tokens and are refused.
enum class TokenType : uint8_t { kU8 = 1, kI8 = 2, kI16 = 3, kI32 = 4, kI64 = 5, kU16 = 8 };
int64_t token_bytes(TokenType type);

// The layout of the header; both directions use it.
inline constexpr char kIndexMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
inline constexpr int64_t kIndexHeaderBytes = 34;

// PREFIX.json. `tokenizer_hash` is the hexadecimal hash that text/ computes; empty when unknown.
struct TokenFileInfo {
  std::string tokenizer_hash;
  int64_t vocab_size = 0;
  int64_t tokens = 0;
  int64_t documents = 0;
  std::optional<int64_t> end_of_document;  // the id that closes each document, if one was appended
};
std::string to_json(const TokenFileInfo& info);

class IndexedReader {
 public:
  // Throws DataError (file, byte offset or document, reason) for anything that is not a whole, consistent pair of
  // files, and IoError when a file cannot be read. Memory: one entry per 256 documents.
  explicit IndexedReader(const std::string& prefix);

  const std::string& prefix() const { return prefix_; }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  TokenType type() const { return type_; }
  const std::optional<TokenFileInfo>& info() const { return info_; }

  // Position of a document's first token in the file; document_start(documents()) is tokens().
  int64_t document_start(int64_t document) const;
  int64_t document_length(int64_t document) const { return document_start(document + 1) - document_start(document); }
  // The document that holds token `position` (the last one that starts there, if empty ones do too).
  int64_t document_of(int64_t position) const;
  // Where documents start strictly between two positions, ascending, each once.
  std::vector<int64_t> starts_between(int64_t first, int64_t last) const;

  // Tokens of one document from `offset` on; they must lie within it.
  void read(int64_t document, int64_t offset, std::span<int32_t> out) const;
  // Tokens by position in the file, across documents. Throws DataError when one is negative or not below the vocabulary
  // of check_tokens (2^31 before it was called), or when the file shrank or changed since it was opened.
  void read_tokens(int64_t first, std::span<int32_t> out) const;

  // Reads the whole file once and throws DataError with token, document and byte offset at the first id >= vocab_size.
  // The result is kept in PREFIX.ok (left out silently where the directory is read-only), which counts only as long as
  // fingerprint() and the modification time are the same.
  void check_tokens(int64_t vocab_size);

  // XXH3-128, hexadecimal, of both sizes, the whole index and 64 blocks of 64 KiB spread evenly over the tokens.
  std::string fingerprint() const;

 private:
  void read_header();
  void read_sequences();
  void read_documents();
  void read_info();
  void load_starts(int64_t first, std::span<int64_t> out) const;
  int32_t scan_tokens() const;
  [[noreturn]] void refuse_token(int64_t position, int64_t token) const;

  std::string prefix_;
  InputFile idx_;
  InputFile bin_;
  TokenType type_ = TokenType::kI32;
  int64_t sequences_ = 0;
  int64_t documents_ = 0;
  int64_t tokens_ = 0;
  int64_t limit_ = int64_t{1} << 31;    // ids must be below
  bool one_to_one_ = true;              // document d is sequence d, as every writer we know does it
  std::vector<int64_t> sparse_starts_;  // of documents 0, 256, 512, ...
  std::optional<TokenFileInfo> info_;
};

}  // namespace conclave::data
