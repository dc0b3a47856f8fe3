// SPDX-License-Identifier: Apache-2.0
// Causal grouped-query attention with rotary positions (Su et al. 2021), optional QK-norm (per head or over the whole
// projection) and q/k/v bias, through ATen's kernels (attention_product.h). Input and output [T, D]; T = B·S tokens, N
// query heads, M key/value heads, H head width. Query, key and value projections are one fused matrix [(N + 2M)·H, D].
#pragma once

#include <optional>

#include "kernels/rope.h"
#include "nn/attention_product.h"
#include "nn/norm.h"
#include "nn/stage.h"

namespace conclave::nn {

struct AttentionConfig {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_positions = 0;
  double rope_theta = 10000;
  std::optional<double> score_scale = {};  // none: 1 / √H
  bool norm_full = false;                  // QK-norm over N·H (OLMoE) instead of each head
  bool document_mask = false;              // attention stays inside a segment
};

struct AttentionWeights {
  ParameterId qkv, output;
  std::optional<ParameterId> qkv_bias;
  std::optional<Norm> q_norm, k_norm;
};

class Attention : public Stage {
 public:
  Attention(StageSite site, const Parameters& parameters, const AttentionConfig& config, AttentionWeights weights,
            Wire wire);
  std::vector<Slot> inputs() const override { return {wire_.input}; }
  std::vector<Slot> outputs() const override { return {wire_.output}; }
  std::vector<ParameterId> parameters() const override;
  Redo redo() const override { return Redo::kAttention; }
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;
  void backward_weight(Frame& frame) override;

 private:
  struct Saved {
    Norm::Saved q_norm, k_norm;
    AttentionState product;  // after norm and rotation
    Tensor context_TD;       // attention output before the output projection
    Tensor dq, dk, dqkv;     // dq, dk: gradients at the norms' outputs, for their weights
  };
  void rotate(Tensor& x_TNH, const Frame& frame, bool inverse);
  AttentionKernel kernel(const Tensor& x) const;
  Tensor normed(const Tensor& x_TNH, const std::optional<Norm>& norm, Norm::Saved& saved) const;
  Tensor norm_backward(const Tensor& dy_TNH, const std::optional<Norm>& norm, const Norm::Saved& saved,
                       Tensor& dy_rows) const;
  Tensor heads_first(const Tensor& x_TNH, const Batch& batch, int64_t repeat) const;
  Tensor tokens_first(const Tensor& dx_BNSH, int64_t repeat) const;

  const Parameters& parameters_;
  AttentionConfig config_;
  AttentionWeights weights_;
  kernels::RopeTable rope_;
  Wire wire_;
};

}  // namespace conclave::nn
