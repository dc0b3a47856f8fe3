// SPDX-License-Identifier: Apache-2.0
// Documents out of text files: .txt (a file is a document) and .jsonl (a line is one), each also as .gz or .zst.
// Reading goes from front to back and holds one document; parsing a line is a function of its own, so that other
// threads can do it. It does not tokenize and does not check that a .txt is UTF-8: tokenizers take any bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/byte_stream.h"

namespace conclave::text {

// All suffixes we read.
const std::vector<std::string_view>& text_suffixes();

struct ReaderOptions {
  std::string json_key = "text";                // member that holds the text; "a.b" is member b of member a
  int64_t largest_document = int64_t{1} << 30;  // bytes of a file of .txt or of a line of .jsonl
};

// A document as it stands in its file.
struct RawDocument {
  std::string content;
  std::shared_ptr<const std::string> path;
  int64_t line = 0;  // of a .jsonl, counted from 1; 0 = `content` is the text itself
};

class TextReader {
 public:
  // `inputs` are files, directories and globs (list_input_files says how). Throws what that throws.
  TextReader(const std::vector<std::string>& inputs, ReaderOptions options = {});

  // The next document, or false at the end. Blank lines are skipped; a byte order mark at the start of a file is
  // dropped. Throws DataError (path, line, reason) for a document larger than allowed and what ByteStream throws.
  bool next(RawDocument& out);
  // next() and document_text() in one.
  bool next_text(std::string& out);

  const ReaderOptions& options() const { return options_; }
  // Bytes of all files as they lie on disk, and how many of them are read: for progress.
  int64_t total_bytes() const { return total_bytes_; }
  int64_t bytes_read() const { return finished_bytes_ + (stream_ ? stream_->consumed() : 0); }

 private:
  bool open_next_file();
  bool next_line(RawDocument& out);
  bool fill();
  void append(std::string& out, std::string_view part) const;
  void drop_byte_order_mark(std::string& start) const;

  ReaderOptions options_;
  std::vector<std::string> files_;
  size_t next_file_ = 0;
  std::unique_ptr<ByteStream> stream_;
  std::shared_ptr<const std::string> path_;
  bool is_lines_ = false;
  int64_t line_ = 0;
  std::vector<char> buffer_;
  std::string_view ready_;  // part of buffer_ not yet used
  int64_t total_bytes_ = 0;
  int64_t finished_bytes_ = 0;
};

// The text of a document: `content` itself, or what stands under `json_key` in the line. Safe to call from any thread.
// Throws DataError with path, line and reason when the line is not a JSON object in UTF-8 or has no text there.
std::string document_text(RawDocument document, const std::string& json_key);

}  // namespace conclave::text
