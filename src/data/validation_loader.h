// SPDX-License-Identifier: Apache-2.0
// Validation batches: each source from its beginning, in order, a fixed number of batches of micro_batch_size
// sequences. The samples are the same whatever the number of ranks; only who evaluates which batch changes. No thread,
// no shuffle.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/batch_loader.h"

namespace conclave::data {

class ValidationLoader {
 public:
  // Of `options`, data.valid is read, with the sizes and ranks. A source may be shorter than `batches` (eval.batches >=
  // 1): its last sample is padded. It needs 2 tokens. Throws ConfigError, DataError, IoError.
  ValidationLoader(const LoaderOptions& options, int64_t batches);

  const std::vector<Source>& sources() const { return sources_; }
  // Batches of a source over all ranks: `batches`, or what the source has.
  int64_t batches(size_t source) const;
  // How many each rank evaluates: the same on all, because evaluation is collective.
  int64_t batches_per_rank(size_t source) const;
  // This rank's i-th: batch number i * dp_size + dp_rank of the source (Batch::index). All padding where the source has
  // no such batch. Global token ids count from 0 in each source.
  Batch batch(size_t source, int64_t i) const;

 private:
  LoaderOptions options_;
  int64_t batches_;
  std::vector<Source> sources_;
};

}  // namespace conclave::data
