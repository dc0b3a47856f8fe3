// SPDX-License-Identifier: Apache-2.0
// The training batches of one data-parallel rank. A step's batches depend on the configuration and the step number
// alone, so the position to save is the step and nothing else. Not collective: every rank opens the files and reads its
// own part.
#pragma once

#include <cstdint>
#include <future>
#include <string>
#include <vector>

#include "core/batch.h"
#include "data/data_config.h"
#include "data/mixture.h"
#include "data/source.h"

namespace conclave::data {

struct LoaderOptions {
  DataConfig data;  // paths as open() takes them
  ExpectedTokens expected;
  int64_t micro_batch_size = 1;   // sequences
  int64_t global_batch_size = 1;  // sequences; a multiple of dp_size * micro_batch_size
  int64_t dp_rank = 0;
  int64_t dp_size = 1;
};

class BatchLoader {
 public:
  // Opens and checks all sources. Throws ConfigError (no source, weights, sizes that do not divide), DataError,
  // IoError.
  explicit BatchLoader(const LoaderOptions& options);

  // The micro-batches r*M/dp ... (r+1)*M/dp - 1 of `step` (from 0), M = global_batch_size / micro_batch_size. While the
  // caller computes, a thread reads those of step + 1; asking for another step than that reads it on the spot. An error
  // of that thread is thrown here, as it was. One caller at a time.
  std::vector<Batch> take(int64_t step);

  // Samples first ... first + count - 1 of the run as one micro-batch, whichever rank trains on them: for those who
  // look at the data before training does.
  Batch samples(int64_t first, int64_t count) const;

  // Names everything that the position of a run means something for: sequence length, seed, order and version of the
  // shuffle, and of each source its name, weight and content (IndexedReader::fingerprint). For the checkpoint: refuse
  // to resume when it differs.
  std::string fingerprint() const;

  const std::vector<Source>& sources() const { return sources_; }
  const Mixture& mixture() const { return mixture_; }
  // Passes over each source when `samples` samples of the run have been taken.
  std::vector<double> epochs(int64_t samples) const;

 private:
  std::vector<Batch> load(int64_t step) const;
  void append(int64_t sample, Batch& batch) const;

  LoaderOptions options_;
  Mixture mixture_;  // before the sources: bad weights are told before any file is opened
  std::vector<Source> sources_;
  int64_t ahead_step_ = -1;
  std::future<std::vector<Batch>> ahead_;  // last: its destructor waits for the thread that uses the members above
};

}  // namespace conclave::data
