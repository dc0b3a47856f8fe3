// SPDX-License-Identifier: Apache-2.0
#include "data/validation_loader.h"

#include <algorithm>

#include "core/error.h"

namespace conclave::data {

ValidationLoader::ValidationLoader(const LoaderOptions& options, int64_t batches)
    : options_(options), batches_(batches) {
  if (batches < 1) throw ConfigError("eval.batches is {}; at least 1 is needed", batches);
  check(options.micro_batch_size >= 1 && options.dp_rank >= 0 && options.dp_rank < options.dp_size,
        "a rank and its size");
  sources_.reserve(options.data.valid.size());
  for (const auto& source : options.data.valid)
    sources_.emplace_back(source, options.expected, options.data.seq_len, 2);
}

int64_t ValidationLoader::batches(size_t source) const {
  const int64_t micro = options_.micro_batch_size;
  return std::min(batches_, (sources_.at(source).samples_with_partial() + micro - 1) / micro);
}

int64_t ValidationLoader::batches_per_rank(size_t source) const {
  return (batches(source) + options_.dp_size - 1) / options_.dp_size;
}

Batch ValidationLoader::batch(size_t source, int64_t i) const {
  check(i >= 0 && i < batches_per_rank(source), "a batch of this rank");
  Batch batch;
  batch.length = options_.data.seq_len;
  batch.index = i * options_.dp_size + options_.dp_rank;
  const Source& from = sources_.at(source);
  for (int64_t row = 0; row < options_.micro_batch_size; ++row) {
    const int64_t sample = batch.index * options_.micro_batch_size + row;
    if (batch.index < batches(source) && sample < from.samples_with_partial())
      from.append(sample * batch.length, sample, options_.data.document_mask, batch);
    else
      Source::append_padding(batch);
  }
  return batch;
}

}  // namespace conclave::data
