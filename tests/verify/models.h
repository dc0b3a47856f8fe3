// SPDX-License-Identifier: Apache-2.0
// Four small models that between them have everything a layout could get wrong.
#pragma once

#include <string>
#include <vector>

#include "verify/verify.h"

namespace conclave::test {

inline train::RunConfig small_config() {
  train::RunConfig config;
  config.model.vocab_size = 32;
  config.model.hidden_size = 32;
  config.model.num_layers = 2;
  config.model.num_attention_heads = 8;
  config.model.num_key_value_heads = 4;
  config.model.max_seq_len = 32;
  config.model.init_std = 0.2;
  config.moe.expert_hidden_size = 24;
  config.data.train = {{.name = "made up", .path = "made-up"}};
  config.data.seq_len = 32;
  config.data.document_mask = true;
  config.optim.lr = 1e-2;
  config.optim.min_lr = 1e-3;
  config.optim.warmup = {0, {}};
  config.train.micro_batch_size = 2;
  config.train.global_batch_size = 16;
  return config;
}

inline train::RunConfig dense_model() {
  auto config = small_config();
  config.moe.enabled = false;
  config.model.ffn_hidden_size = 40;
  return config;
}

inline train::RunConfig softmax_aux_model() {
  auto config = small_config();
  config.moe.balance.losses = {
      {moe::LossType::kSwitch, 0.01, moe::Level::kMicro, moe::Convention::kMegatron, moe::Scope::kLayer},
      {moe::LossType::kSwitch, 0.03, moe::Level::kGlobal, moe::Convention::kMegatron, moe::Scope::kLayer},
      {moe::LossType::kZ, 1e-3}};
  return config;
}

inline train::RunConfig sigmoid_bias_model() {
  auto config = small_config();
  config.moe.router.score = moe::Score::kSigmoid;
  config.moe.router.norm_topk_prob = true;
  config.moe.router.routed_scaling_factor = 2.5;
  config.moe.balance.bias.update_rate = 0.01;
  config.moe.num_shared_experts = 1;
  return config;
}

inline train::RunConfig capacity_model() {
  auto config = small_config();
  config.moe.capacity.factor = 0.7;
  config.moe.capacity.min = 1;
  return config;
}

}  // namespace conclave::test
