// SPDX-License-Identifier: Apache-2.0
// A default expert for what capacity refuses (methods.md 1.21): y_t = routed_t + l_t · f_t, f the output of a dense
// expert that every rank has, l_t the sum of the weights of token t's refused choices. The dense expert is computed
// once for each token; it counts neither in loads nor in losses.
#pragma once

#include <cstdint>
#include <span>

#include "moe/decision.h"
#include "nn/stage.h"

namespace conclave::moe {

// Picks of the tokens in `own` that `asked_C` has and `keep_C` has not, in their order.
std::vector<int32_t> lost_picks(const Picks& picks, std::span<const uint8_t> asked_C, std::span<const uint8_t> keep_C,
                                TokenRange own);
// l [T] of the decision's own tokens.
Tensor lost_weights(const Decision& decision);
// Adds the gradient of those weights to that of the picks.
void add_lost_gradient(const Decision& decision, const Tensor& dlost_T, Tensor& dweights_C);

struct FallbackSlots {
  nn::Slot routed, fallback, lost, output;
};

class FallbackStage : public nn::Stage {
 public:
  FallbackStage(nn::StageSite site, FallbackSlots slots) : Stage(std::move(site)), slots_(slots) {}
  std::vector<nn::Slot> inputs() const override { return {slots_.routed, slots_.fallback, slots_.lost}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;

 private:
  FallbackSlots slots_;
};

}  // namespace conclave::moe
