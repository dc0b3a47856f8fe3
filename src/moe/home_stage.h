// SPDX-License-Identifier: Apache-2.0
// What experts that compute nothing add at a token's home, without any exchange: y_t = routed_t + h_t0 x_t +
// Σ_v h_tv V_v, h [T, 1 + n] the home terms of the router, V [n, D] vectors of the layer (Jin et al. 2024, MoE++, arXiv
// 2410.07348).
#pragma once

#include <optional>

#include "nn/stage.h"

namespace conclave::moe {

struct HomeSlots {
  nn::Slot routed, input, home, output;
};

class HomeStage : public nn::Stage {
 public:
  // `vectors` [n, D]; none where only x is added.
  HomeStage(nn::StageSite site, const nn::Parameters& parameters, std::optional<nn::ParameterId> vectors,
            HomeSlots slots);
  std::vector<nn::Slot> inputs() const override { return {slots_.routed, slots_.input, slots_.home}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  std::vector<nn::ParameterId> parameters() const override;
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  const nn::Parameters& parameters_;
  std::optional<nn::ParameterId> vectors_;
  HomeSlots slots_;
};

}  // namespace conclave::moe
