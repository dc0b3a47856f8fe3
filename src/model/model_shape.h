// SPDX-License-Identifier: Apache-2.0
// Every width of the model after granularity, derived defaults and the dense twin are resolved: plain numbers, from
// which the transformer is built and parameters and FLOPs are counted. Nothing here knows ranks or tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model_config.h"
#include "moe/moe_config.h"

namespace conclave::model {

struct LayerShape {
  bool moe = false;
  int64_t ffn_width = 0;          // of the dense FFN, also of one beside the experts; 0 when the layer has none
  int64_t num_experts = 0;        // E after granularity
  int64_t top_k = 0;              // k after granularity
  int64_t most_picks = 0;         // experts that a token may be sent to
  int64_t router_columns = 0;     // scores of a token
  bool router_elsewhere = false;  // its weights are another layer's
  int64_t expert_width = 0;       // F after granularity
  int64_t shared_width = 0;       // 0 = no shared expert
  bool shared_gate = false;
  bool residual_dense = false;  // Arctic: a dense FFN of ffn_width beside the experts, which read the block input

  bool operator==(const LayerShape&) const = default;
};

struct ModelShape {
  int64_t vocab = 0;
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_seq_len = 0;
  bool tied = false;
  bool qkv_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  std::vector<LayerShape> layers;
};

// Throws ConfigError when the numbers do not fit together (a width that granularity does not divide, more chosen
// experts than there are, a list of the wrong length). With moe.enabled = false each MoE layer becomes a dense FFN of
// width k * width + shared (after granularity), plus the width of the dense FFN that stood beside its experts.
ModelShape model_shape(const ModelConfig& model, const moe::MoeConfig& moe);

// What one of `tp` tensor-parallel ranks computes with, an expert being spread over `etp` of them: fewer heads, smaller
// widths, a part of the vocabulary (the largest of uneven ones).
ModelShape share_of(const ModelShape& shape, int64_t tp, int64_t etp);

}  // namespace conclave::model
