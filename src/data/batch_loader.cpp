// SPDX-License-Identifier: Apache-2.0
#include "data/batch_loader.h"

#include <set>

#include "core/error.h"
#include "data/shuffle.h"

namespace conclave::data {
namespace {

const LoaderOptions& checked(const LoaderOptions& options) {
  const auto& data = options.data;
  if (data.train.empty()) throw ConfigError("data.train is empty; name at least one source of training tokens");
  if (data.packing != "concat") throw ConfigError("data.packing: '{}' is unknown; use concat", data.packing);
  if (data.seq_len < 1) throw ConfigError("data.seq_len is {}; at least 1 is needed", data.seq_len);
  std::set<std::string> names;
  for (const auto& source : data.train) {
    if (!names.insert(source.name).second)
      throw ConfigError(
          "data.train: two sources are called '{}'; the name decides the order of samples and must be unique",
          source.name);
  }
  check(options.dp_size >= 1 && options.dp_rank >= 0 && options.dp_rank < options.dp_size, "a rank within its group");
  const int64_t micro = options.micro_batch_size, global = options.global_batch_size;
  if (micro < 1 || global < 1 || global % micro != 0 || global / micro % options.dp_size != 0)
    throw ConfigError(
        "train.global_batch_size {} is not a multiple of train.micro_batch_size {} times {} data-parallel ranks",
        global, micro, options.dp_size);
  return options;
}

std::vector<Source> open_sources(const LoaderOptions& options) {
  std::vector<Source> sources;
  sources.reserve(options.data.train.size());
  for (const auto& source : options.data.train)
    sources.emplace_back(source, options.expected, options.data.seq_len, options.data.seq_len + 1);
  return sources;
}

Mixture mix(const DataConfig& data) {
  std::vector<double> weights;
  for (const auto& source : data.train) weights.push_back(source.weight);
  return Mixture(weights);
}

}  // namespace

BatchLoader::BatchLoader(const LoaderOptions& options)
    : options_(checked(options)), mixture_(mix(options.data)), sources_(open_sources(options)) {}

void BatchLoader::append(int64_t sample, Batch& batch) const {
  const auto draw = mixture_.at(sample);
  const Source& source = sources_[draw.source];
  const int64_t start = source.shuffled_start(static_cast<uint64_t>(options_.data.seed), draw.sample);
  source.append(start, sample, options_.data.document_mask, batch);
}

Batch BatchLoader::samples(int64_t first, int64_t count) const {
  Batch batch;
  batch.length = options_.data.seq_len;
  for (int64_t sample = first; sample < first + count; ++sample) append(sample, batch);
  return batch;
}

std::vector<Batch> BatchLoader::load(int64_t step) const {
  const int64_t micro_batches = options_.global_batch_size / options_.micro_batch_size;
  const int64_t mine = micro_batches / options_.dp_size;
  std::vector<Batch> batches;
  batches.reserve(static_cast<size_t>(mine));
  for (int64_t index = options_.dp_rank * mine; index < (options_.dp_rank + 1) * mine; ++index) {
    Batch& batch = batches.emplace_back();
    batch.length = options_.data.seq_len;
    batch.index = index;
    for (int64_t row = 0; row < options_.micro_batch_size; ++row)
      append(step * options_.global_batch_size + index * options_.micro_batch_size + row, batch);
  }
  return batches;
}

std::vector<Batch> BatchLoader::take(int64_t step) {
  check(step >= 0, "a step >= 0");
  // An unwanted step's result is dropped with its error, if any: whoever asks for that step meets the error then.
  if (ahead_.valid() && ahead_step_ != step) ahead_ = {};
  auto batches = ahead_.valid() ? ahead_.get() : load(step);
  ahead_step_ = step + 1;
  ahead_ = std::async(std::launch::async, [this, next = ahead_step_] { return load(next); });
  return batches;
}

std::string BatchLoader::fingerprint() const {
  std::string text =
      fmt::format("seq_len {}, seed {}, shuffle {}", options_.data.seq_len, options_.data.seed, kShuffleVersion);
  for (size_t i = 0; i < sources_.size(); ++i)
    text += fmt::format("; {} weight {} {}", sources_[i].name(), options_.data.train[i].weight,
                        sources_[i].reader().fingerprint());
  return text;
}

std::vector<double> BatchLoader::epochs(int64_t samples) const {
  std::vector<double> passes;
  for (size_t i = 0; i < sources_.size(); ++i)
    passes.push_back(static_cast<double>(mixture_.taken(i, samples)) /
                     static_cast<double>(sources_[i].samples_per_epoch()));
  return passes;
}

}  // namespace conclave::data
