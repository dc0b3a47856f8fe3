// SPDX-License-Identifier: Apache-2.0
// Every width of the model after granularity, derived defaults and the dense twin are resolved: plain numbers, from
// which the transformer is built and parameters and FLOPs are counted. Nothing here knows ranks or tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "moe/moe_config.h"

namespace conclave::model {

struct LayerShape {
  bool moe = false;                  // tokens choose experts
  int64_t ffn_width = 0;             // of the dense FFN, also of one beside the experts; 0 when the layer has none
  int64_t num_experts = 0;           // E after granularity
  int64_t home_experts = 0;          // besides, that compute nothing (null experts, copies)
  int64_t home_terms = 0;            // numbers of a token that weigh what is added at home: its input and vectors
  bool home_kept = false;            // those vectors are what the router keeps, no parameters
  int64_t top_k = 0;                 // k after granularity
  double mean_picks = 0;             // experts that FLOPs are planned for: k where nothing else is known
  int64_t most_picks = 0;            // experts that a token may be sent to
  int64_t router_columns = 0;        // scores of a token
  bool router_context = false;       // the router sees a mean of earlier tokens, too
  int64_t router_state = 0;          // H: it reads a state of the token of so many numbers instead; 0 = the input
  bool router_unit = false;          // what carries that state from layer to layer counts here
  bool outputs_kept = false;         // each token's outputs of experts stay for the router's backward
  bool router_elsewhere = false;     // its weights are another layer's
  int64_t expert_width = 0;          // F after granularity; of different widths the mean, rounded down
  std::vector<int64_t> widths = {};  // of each expert, where they differ; else empty
  int64_t shared_width = 0;          // 0 = no shared expert
  int64_t fallback_width = 0;        // of the expert for dropped choices; 0 = none
  bool shared_gate = false;
  int64_t merge_segment = 0;    // tokens that share merged weights of all experts (Lory); 0 = tokens choose experts
  bool branch_gate = false;     // PR-MoE: two numbers for each token weigh experts and dense FFN
  bool residual_dense = false;  // Arctic: a dense FFN of ffn_width beside the experts, which read the block input
  bool compressed = false;      // rows travel as means of similar ones (moe.dispatch.compression)

  bool merges() const { return merge_segment > 0; }
  // Parameters [D] among what is added at home.
  int64_t home_vectors() const { return home_terms > 1 && !home_kept ? home_terms - 1 : 0; }
  int64_t width_of(int64_t expert) const { return widths.empty() ? expert_width : widths.at(expert); }
  // Widths of `count` experts from `first` on, added up.
  int64_t widths_from(int64_t first, int64_t count) const;
  // The same of the `count` widest.
  int64_t widest(int64_t count) const;
  // Each width once, ascending.
  std::vector<int64_t> different_widths() const;
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

// "width 128", or "widths 72 to 184 (mean 128)".
std::string width_text(const LayerShape& layer);

// What one of `tp` tensor-parallel ranks computes with, an expert being spread over `etp` of them: fewer heads, smaller
// widths, a part of the vocabulary (the largest of uneven ones).
ModelShape share_of(const ModelShape& shape, int64_t tp, int64_t etp);

}  // namespace conclave::model
