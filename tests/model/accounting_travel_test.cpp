// SPDX-License-Identifier: Apache-2.0
// Memory of what travels in another form: rows as means of similar ones, gradients as bf16.
#include <gtest/gtest.h>

#include "model/accounting.h"

namespace conclave::model {
namespace {

ModelConfig small_model() {
  ModelConfig model;
  model.vocab_size = 1000;
  model.hidden_size = 64;
  model.num_layers = 4;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.ffn_hidden_size = 96;
  return model;
}

TEST(AccountingTravel, BucketsOfRowsAndGradientsAsBf16TakeRoom) {
  moe::MoeConfig moe;
  const auto plain = model_shape(small_model(), moe);
  moe.dispatch.compression.emplace();
  const auto compressed = model_shape(small_model(), moe);
  // A mean and a result for each of two rows of a token.
  const auto layers = std::ssize(plain.layers);
  EXPECT_EQ(rank_bytes(compressed, {.micro_batch_tokens = 128}).activations,
            rank_bytes(plain, {.micro_batch_tokens = 128}).activations + 4 * 128 * layers * 2 * 2 * 64);
  MemoryPlan plan{.dp = 2, .micro_batches = 2, .micro_batch_tokens = 128};
  const int64_t received = rank_bytes(plain, plan).received;
  plan.gradient_payload = parallel::GradientPayload::kBf16;
  EXPECT_EQ(rank_bytes(plain, plan).received, 2 * received);
}

}  // namespace
}  // namespace conclave::model
