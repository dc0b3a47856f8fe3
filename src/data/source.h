// SPDX-License-Identifier: Apache-2.0
// One token file, checked against the tokenizer and vocabulary of the run and cut into samples: windows of seq_len
// tokens plus the one that follows. Documents are end to end in the order of the file. It does not mix sources
// (mixture.h) nor split batches over ranks (batch_loader.h).
//
// Windows are cut from the file as it is and then shuffled; documents are not shuffled before cutting. A random order
// of documents with O(1) access to a sample needs a stored prefix sum of permuted lengths, per epoch; windows need
// nothing. The price is that the same neighbours stay neighbours within a window, softened by a cut that moves from
// epoch to epoch.
#pragma once

#include <cstdint>
#include <string>

#include "core/batch.h"
#include "data/data_config.h"
#include "data/indexed_dataset.h"

namespace conclave::data {

// What the run's tokenizer and model allow. An empty hash or a file without PREFIX.json: the tokenizer is not compared.
struct ExpectedTokens {
  int64_t vocab_size = 0;
  std::string tokenizer_hash;
};

class Source {
 public:
  // Opens and scans the file. Throws DataError when it is broken, has ids >= vocab_size, was made with another
  // tokenizer or has less than `least_tokens`.
  Source(const SourceConfig& config, const ExpectedTokens& expected, int64_t seq_len, int64_t least_tokens);

  const std::string& name() const { return name_; }
  const IndexedReader& reader() const { return reader_; }
  int64_t tokens() const { return reader_.tokens(); }
  // Whole samples of one pass; every token is an input once per pass, but for fewer than seq_len left over by the cut.
  int64_t samples_per_epoch() const { return (tokens() - 1) / seq_len_; }
  // Samples with the last, partial one.
  int64_t samples_with_partial() const { return (tokens() - 1 + seq_len_ - 1) / seq_len_; }

  // First token of the `sample`-th training sample drawn from this source (0, 1, ... without end; epochs follow each
  // other).
  int64_t shuffled_start(uint64_t seed, int64_t sample) const;

  // Appends the sample that starts at token `first` to `batch` (whose `length` is seq_len) as one more row; a window
  // that the file ends in is padded (segment -1, mask 0). With `document_mask`, segments count documents, positions
  // restart in each, and the last token of a document has no target in the loss: its target is the next document's
  // first token.
  void append(int64_t first, int64_t global_sample, bool document_mask, Batch& batch) const;
  // Appends a row of padding.
  static void append_padding(Batch& batch);

 private:
  void check_tokenizer(const ExpectedTokens& expected) const;
  void separate_documents(int64_t first, int64_t valid, Batch& batch) const;

  std::string name_;
  IndexedReader reader_;
  int64_t seq_len_;
};

}  // namespace conclave::data
