// SPDX-License-Identifier: Apache-2.0
// The recurrent router (RMoE, Qiu et al. 2024, arXiv 2408.06793): what a layer's router reads is a state of the token
// that a gated recurrent unit carries from MoE layer to MoE layer, so that a choice knows the ones before it:
//   u = P_l x_l,   r, z = sigmoid(A u + a + B h_{l−1} + b) (two thirds of the rows),
//   n = tanh(A u + a + r ⊙ (B h_{l−1} + b)) (the last third),   h_l = (1 − z) ⊙ n + z ⊙ h_{l−1},   h_0 = 0,
// and logits W_l h_l. P and W are a layer's own, the unit (A, B, a, b) is one for all layers, as in the paper's figure
// (methods.md 7.1 writes GRU_l). Of a token alone (class C0): any rank may have any tokens. Gradients pass through the
// states of all layers: h_l gets those of its router and of h_{l+1}. T tokens of this rank, D width, H of the state.
#pragma once

#include <optional>

#include "nn/stage.h"

namespace conclave::moe {

// A, B, a, b.
struct RecurrentUnit {
  nn::ParameterId input_3HH, state_3HH, input_bias_3H, state_bias_3H;
};

struct RecurrentWeights {
  RecurrentUnit unit;
  nn::ParameterId projection_HD = 0;  // P
  // Another layer may have written the unit's gradients before this one: backward begins with the last layer.
  bool adds = false;
};

struct RecurrentSlots {
  nn::Slot input;                  // x [T, D]
  std::optional<nn::Slot> before;  // h_{l−1} [T, H]; none = zero
  nn::Slot state;                  // h_l [T, H]
};

class RecurrentStage : public nn::Stage {
 public:
  RecurrentStage(nn::StageSite site, const nn::Parameters& parameters, const RecurrentWeights& weights,
                 const RecurrentSlots& slots)
      : Stage(std::move(site)), parameters_(parameters), weights_(weights), slots_(slots) {}
  std::vector<nn::Slot> inputs() const override;
  std::vector<nn::Slot> outputs() const override { return {slots_.state}; }
  std::vector<nn::ParameterId> parameters() const override;
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  struct Saved {
    Tensor u_TH;
    Tensor gates_T3H;                          // r, z, n
    Tensor proposed_TH;                        // B h_{l−1} + b of the last third
    Tensor of_input_T3H, of_state_T3H, du_TH;  // gradients: of A u + a, of B h_{l−1} + b, of u
  };
  Tensor state_before(nn::Frame& frame, const Tensor& like_TH) const;

  const nn::Parameters& parameters_;
  RecurrentWeights weights_;
  RecurrentSlots slots_;
};

}  // namespace conclave::moe
