// SPDX-License-Identifier: Apache-2.0
#include "verify/batches.h"

#include "core/random.h"

namespace conclave::verify {
namespace {

struct Sequence {
  int64_t number;  // in the run
  int64_t tokens;  // that are not padding
  int64_t border;  // where the second document begins
};

Sequence sequence_of(const train::RunConfig& config, int64_t number) {
  const Random random(static_cast<uint64_t>(config.train.seed), Purpose::kSample, "verify.documents");
  const int64_t length = config.data.seq_len;
  Sequence sequence{number, length, 1 + static_cast<int64_t>(random.bits(2 * number) % length)};
  if (number % 4 == 3) sequence.tokens -= static_cast<int64_t>(random.bits(2 * number + 1) % ((length + 3) / 4));
  if (number % 4 == 3 && sequence.tokens == length) --sequence.tokens;
  return sequence;
}

void append(const train::RunConfig& config, const Sequence& sequence, Batch& batch) {
  const Random random(static_cast<uint64_t>(config.train.seed), Purpose::kSample, "verify.tokens");
  const auto token = [&](int64_t id) { return static_cast<int32_t>(random.bits(id) % config.model.vocab_size); };
  for (int64_t i = 0; i < batch.length; ++i) {
    const bool real = i < sequence.tokens;
    const bool second = config.data.document_mask && i >= sequence.border;
    const bool last = config.data.document_mask && i + 1 == sequence.border;  // its target is another document's
    const int64_t at = sequence.number * (batch.length + 1) + i;
    batch.tokens.push_back(real ? token(at) : 0);
    batch.targets.push_back(real ? token(at + 1) : 0);
    batch.loss_mask.push_back(real && !last ? 1.0f : 0.0f);
    batch.segment_ids.push_back(!real ? -1 : second ? 1 : 0);
    batch.position_ids.push_back(static_cast<int32_t>(!real ? 0 : second ? i - sequence.border : i));
    batch.global_token_ids.push_back(sequence.number * batch.length + i);
  }
}

}  // namespace

Batch micro_batch(const train::RunConfig& config, int64_t step, int64_t number) {
  Batch batch;
  batch.sequences = config.train.micro_batch_size;
  batch.length = config.data.seq_len;
  batch.index = number;
  const int64_t first = step * config.train.global_batch_size + number * batch.sequences;
  for (int64_t b = 0; b < batch.sequences; ++b) append(config, sequence_of(config, first + b), batch);
  return batch;
}

}  // namespace conclave::verify
