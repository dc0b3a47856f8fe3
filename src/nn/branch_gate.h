// SPDX-License-Identifier: Apache-2.0
// PR-MoE's sum of two branches (Rajbhandari et al. 2022, arXiv 2201.05596): y = c₀·a + c₁·b for each token, (c₀, c₁) =
// softmax(x·Wᵀ + β), W [2, D] and β [2] learned.
#pragma once

#include "nn/stage.h"

namespace conclave::nn {

struct BranchGateWeights {
  ParameterId weight_2D, bias_2;
};

struct BranchGateSlots {
  Slot input, first, second, output;
};

class BranchGate : public Stage {
 public:
  BranchGate(StageSite site, const Parameters& parameters, BranchGateWeights weights, BranchGateSlots slots)
      : Stage(std::move(site)), parameters_(parameters), weights_(weights), slots_(slots) {}
  std::vector<Slot> inputs() const override { return {slots_.input, slots_.first, slots_.second}; }
  std::vector<Slot> outputs() const override { return {slots_.output}; }
  std::vector<ParameterId> parameters() const override { return {weights_.weight_2D, weights_.bias_2}; }
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;
  void backward_weight(Frame& frame) override;

 private:
  struct Saved {
    Tensor c_T2, dlogits_T2;
  };

  const Parameters& parameters_;
  BranchGateWeights weights_;
  BranchGateSlots slots_;
};

}  // namespace conclave::nn
