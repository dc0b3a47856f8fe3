// SPDX-License-Identifier: Apache-2.0
// SwiGLU feed-forward (Shazeer 2020): y = (silu(x·Wgᵀ) ⊙ x·Wuᵀ)·Wdᵀ, optionally times sigmoid(x·wsᵀ) per token (the
// gated shared expert of Qwen2-MoE). Serves dense layers, the dense twin and shared experts. Gate and up are one fused
// matrix [2F, D].
#pragma once

#include <optional>

#include "nn/stage.h"

namespace conclave::nn {

struct FeedForwardWeights {
  ParameterId gate_up_2FD;
  ParameterId down_DF;
  std::optional<ParameterId> output_gate_1D;
};

class FeedForward : public Stage {
 public:
  FeedForward(StageSite site, const Parameters& parameters, FeedForwardWeights weights, Wire wire);
  std::vector<Slot> inputs() const override { return {wire_.input}; }
  std::vector<Slot> outputs() const override { return {wire_.output}; }
  std::vector<ParameterId> parameters() const override;
  Redo redo() const override { return Redo::kFull; }
  // Some backward reads the output: forward_again makes it, too.
  void keep_output() { output_read_ = true; }
  void forward(Frame& frame) override;
  void forward_again(Frame& frame) override;  // all but the output, where no backward reads it
  void backward_input(Frame& frame) override;
  void backward_weight(Frame& frame) override;

 private:
  struct Saved {
    Tensor h_T2F, scale_T;            // from forward
    Tensor dh_T2F, act_TF, dgate_T1;  // from backward_input, for the weight gradients
  };
  Saved& pre_activations(Frame& frame) const;

  const Parameters& parameters_;
  FeedForwardWeights weights_;
  Wire wire_;
  bool output_read_ = false;
};

}  // namespace conclave::nn
