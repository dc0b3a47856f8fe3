// SPDX-License-Identifier: Apache-2.0
// What experts that compute nothing add at a token's home, without any exchange: y_t = routed_t + h_t0 x_t +
// Σ_v h_tv V_v, h [T, 1 + n] the home terms of the router, V [n, D] vectors of the layer (Jin et al. 2024, MoE++, arXiv
// 2410.07348), or mean outputs that the router keeps (Panda et al. 2025, arXiv 2504.12463).
#pragma once

#include <optional>
#include <string>

#include "moe/method_state.h"
#include "nn/stage.h"

namespace conclave::moe {

struct HomeSlots {
  nn::Slot routed, input, home, output;
};

// V: a parameter, or what a router keeps under `name` in a state that outlives the stage; none where only x is added.
struct HomeVectors {
  std::optional<nn::ParameterId> learned = {};
  const MethodState* state = nullptr;
  std::string name = {};
};

class HomeStage : public nn::Stage {
 public:
  HomeStage(nn::StageSite site, const nn::Parameters& parameters, HomeVectors vectors, HomeSlots slots);
  std::vector<nn::Slot> inputs() const override { return {slots_.routed, slots_.input, slots_.home}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  std::vector<nn::ParameterId> parameters() const override;
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  // [n, D] in the type of `rows`; undefined where only x is added.
  Tensor vectors(const Tensor& rows) const;

  const nn::Parameters& parameters_;
  HomeVectors vectors_;
  HomeSlots slots_;
};

}  // namespace conclave::moe
