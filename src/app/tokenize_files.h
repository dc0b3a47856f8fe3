// SPDX-License-Identifier: Apache-2.0
// Turns text files into token files on several threads. Documents are written in the order they were read, so the
// output does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "text/text_reader.h"
#include "text/tokenizer.h"

namespace conclave::app {

struct TokenizeJob {
  std::string output;                      // prefix of the token files; the validation part goes to OUTPUT-valid
  std::optional<int32_t> end_of_document;  // appended to each document
  double valid_share = 0;                  // of the documents, chosen by a hash of their text
  int workers = 1;
};

struct TokenizedPart {
  std::string prefix;
  int64_t documents = 0;
  int64_t bytes = 0;  // of text
  int64_t tokens = 0;
};

struct TokenizeResult {
  TokenizedPart train;
  std::optional<TokenizedPart> valid;
  int64_t empty_documents = 0;  // left out
};

// True when a document belongs to the validation part: depends on its text alone, so that adding files or changing the
// order moves no document across, and a smaller share chooses a part of what a greater one does.
bool is_validation(std::string_view text, double valid_share);

// Reads everything, then commits both parts. `progress` is told the bytes read so far. Throws DataError when a part
// would have no document, UsageError when the output directory is missing, and whatever reading and writing throw;
// nothing is committed unless all text was read.
TokenizeResult tokenize_files(text::TextReader& reader, const text::Tokenizer& tokenizer, const TokenizeJob& job,
                              const std::function<void(int64_t)>& progress);

}  // namespace conclave::app
