// SPDX-License-Identifier: Apache-2.0
#include "data/source.h"

#include <algorithm>

#include "core/error.h"
#include "data/shuffle.h"

namespace conclave::data {

Source::Source(const SourceConfig& config, const ExpectedTokens& expected, int64_t seq_len, int64_t least_tokens)
    : name_(config.name), reader_(config.path), seq_len_(seq_len) {
  check(seq_len >= 1, "seq_len >= 1");
  check_tokenizer(expected);
  reader_.check_tokens(expected.vocab_size);
  if (tokens() < least_tokens)
    throw DataError(
        "{}.bin: source '{}' holds {} tokens, but one sample needs {} (data.seq_len is {}); add text, or "
        "lower data.seq_len",
        config.path, name_, tokens(), least_tokens, seq_len);
}

void Source::check_tokenizer(const ExpectedTokens& expected) const {
  const auto& info = reader_.info();
  if (!info) return;
  if (!expected.tokenizer_hash.empty() && !info->tokenizer_hash.empty() &&
      info->tokenizer_hash != expected.tokenizer_hash)
    throw DataError(
        "{}.json: source '{}' was tokenized by tokenizer {}, this run uses {} (data.tokenizer); tokenize the "
        "text again with that one, or set data.tokenizer to the one that made the file",
        reader_.prefix(), name_, info->tokenizer_hash, expected.tokenizer_hash);
  if (info->vocab_size > expected.vocab_size)
    throw DataError(
        "{}.json: source '{}' was made for a vocabulary of {} entries, the model has {}; set model.vocab_size to "
        "at least {}, or tokenize the text again with a smaller tokenizer",
        reader_.prefix(), name_, info->vocab_size, expected.vocab_size, info->vocab_size);
}

int64_t Source::shuffled_start(uint64_t seed, int64_t sample) const {
  const int64_t count = samples_per_epoch();
  const auto epoch = static_cast<uint64_t>(sample / count);
  const Permutation order(seed, name_, epoch, count);
  // The tokens that no whole window covers are a different few in each epoch: the first window starts 0 ... slack
  // later.
  const auto slack = static_cast<uint64_t>(tokens() - 1 - count * seq_len_);
  const uint64_t cut = Random(seed, Purpose::kShuffle, "cut/" + name_).bits(epoch) % (slack + 1);
  return order(sample % count) * seq_len_ + static_cast<int64_t>(cut);
}

void Source::append(int64_t first, int64_t global_sample, bool document_mask, Batch& batch) const {
  check(batch.length == seq_len_, "a batch of this source's sequence length");
  const int64_t valid = std::min(seq_len_, tokens() - 1 - first);
  check(first >= 0 && valid > 0, "a sample that starts within the file");
  std::vector<int32_t> window(static_cast<size_t>(valid) + 1);
  reader_.read_tokens(first, window);

  append_padding(batch);
  const auto row = static_cast<std::ptrdiff_t>((batch.sequences - 1) * seq_len_);
  std::copy(window.begin(), window.end() - 1, batch.tokens.begin() + row);
  std::copy(window.begin() + 1, window.end(), batch.targets.begin() + row);
  std::fill_n(batch.loss_mask.begin() + row, valid, 1.0f);
  for (int64_t i = 0; i < seq_len_; ++i)
    batch.global_token_ids[static_cast<size_t>(row + i)] = global_sample * seq_len_ + i;
  if (document_mask) return separate_documents(first, valid, batch);
  std::fill_n(batch.segment_ids.begin() + row, valid, 0);
  for (int64_t i = 0; i < valid; ++i) batch.position_ids[static_cast<size_t>(row + i)] = static_cast<int32_t>(i);
}

void Source::separate_documents(int64_t first, int64_t valid, Batch& batch) const {
  // One beyond the last input: whether the last target starts a document matters too.
  const auto starts = reader_.starts_between(first, first + valid + 1);
  auto next = starts.begin();
  int32_t segment = 0, position = 0;
  const int64_t row = (batch.sequences - 1) * seq_len_;
  for (int64_t i = 0; i < valid; ++i, ++position) {
    const auto at = static_cast<size_t>(row + i);
    if (next != starts.end() && *next == first + i) {
      ++segment;
      position = 0;
      ++next;
    }
    batch.segment_ids[at] = segment;
    batch.position_ids[at] = position;
    if (next != starts.end() && *next == first + i + 1) batch.loss_mask[at] = 0.0f;
  }
}

void Source::append_padding(Batch& batch) {
  ++batch.sequences;
  const auto count = static_cast<size_t>(batch.tokens_count());
  batch.tokens.resize(count, 0);
  batch.targets.resize(count, 0);
  batch.loss_mask.resize(count, 0.0f);
  batch.segment_ids.resize(count, -1);
  batch.position_ids.resize(count, 0);
  batch.global_token_ids.resize(count, -1);
}

}  // namespace conclave::data
