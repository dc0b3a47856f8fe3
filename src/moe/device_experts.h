// SPDX-License-Identifier: Apache-2.0
// All experts of a layer on one device: gather, grouped SwiGLU with the gates before the down projection, and the sum
// of each token's rows. One stage, because nothing travels between ranks here. Kept for backward are the
// pre-activations and the gates; rows are gathered again from the layer's input. No look from the host. N = T·K rows.
#pragma once

#include "kernels/grouped_products.h"
#include "moe/device_route.h"
#include "moe/experts.h"

namespace conclave::moe {

struct DeviceExpertSlots {
  nn::Slot input;     // x [T, D]
  nn::Slot weights;   // [T, K]
  nn::Slot decision;  // object: DeviceDecision
  nn::Slot output;    // y [T, D]
};

class DeviceExpertStage : public nn::Stage {
 public:
  // All experts of the layer, gate and up of each after one another, then down.
  DeviceExpertStage(nn::StageSite site, const nn::Parameters& parameters, const std::vector<ExpertWeights>& experts,
                    const DeviceExpertSlots& slots);
  std::vector<nn::Slot> inputs() const override { return {slots_.input, slots_.weights, slots_.decision}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  std::vector<nn::ParameterId> parameters() const override;
  nn::Redo redo() const override { return nn::Redo::kFfn; }
  void forward(nn::Frame& frame) override;
  void forward_again(nn::Frame& frame) override;  // all but the output, which no backward reads
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  struct Saved {
    Tensor h_N2F, gates_N;         // from forward
    Tensor dy_ND, dh_N2F, act_NF;  // from backward_input, for the weight gradients
  };
  const kernels::SlotMap& rows_of(nn::Frame& frame) const;
  kernels::RowGroups groups(nn::Frame& frame) const;
  Tensor gathered(const Tensor& x_TD, nn::Frame& frame) const;
  Saved& pre_activations(nn::Frame& frame) const;
  void add_weight_gradient(const Tensor& dy, const Tensor& x, const std::vector<nn::ParameterId>& ids,
                           nn::Frame& frame) const;

  const nn::Parameters& parameters_;
  std::vector<nn::ParameterId> gate_up_, down_;
  DeviceExpertSlots slots_;
};

}  // namespace conclave::moe
