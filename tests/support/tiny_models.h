// SPDX-License-Identifier: Apache-2.0
// Small models and batches for tests.
#pragma once

#include "core/batch.h"
#include "core/random.h"
#include "model/transformer.h"

namespace conclave::testing {

// Two layers, width 16, four experts of width 12, top-2, vocabulary 23 (odd on purpose).
inline model::TransformerConfig tiny_config() {
  model::TransformerConfig config;
  config.model.vocab_size = 23;
  config.model.hidden_size = 16;
  config.model.num_layers = 2;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 2;
  config.model.head_dim = 4;
  config.model.ffn_hidden_size = 24;
  config.model.max_seq_len = 64;
  config.model.init_std = 0.2;
  config.moe.num_experts = int64_t{4};
  config.moe.top_k = 2;
  config.moe.expert_hidden_size = 12;
  return config;
}

// Tokens drawn from (seed, index); every target counts.
inline Batch random_batch(int64_t sequences, int64_t length, int64_t vocab, uint64_t seed, int64_t index = 0) {
  Batch batch;
  batch.sequences = sequences;
  batch.length = length;
  batch.index = index;
  const Random random(seed, Purpose::kTest, index);
  for (int64_t b = 0; b < sequences; ++b) {
    for (int64_t i = 0; i < length; ++i) {
      const int64_t at = b * (length + 1) + i;
      batch.tokens.push_back(static_cast<int32_t>(random.bits(at) % vocab));
      batch.targets.push_back(static_cast<int32_t>(random.bits(at + 1) % vocab));
      batch.loss_mask.push_back(1.0f);
      batch.segment_ids.push_back(0);
      batch.position_ids.push_back(static_cast<int32_t>(i));
      batch.global_token_ids.push_back((index * sequences + b) * length + i);
    }
  }
  return batch;
}

}  // namespace conclave::testing
