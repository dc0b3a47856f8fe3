// SPDX-License-Identifier: Apache-2.0
// The experts of this rank on a device: grouped SwiGLU with the gates before the down projection. DeviceExperts
// computes on rows that lie sorted by expert; DeviceExpertStage is a whole layer where nothing travels between ranks:
// it gathers, computes and sums each token's rows. Kept for backward are the pre-activations. No look from the host. N
// rows, D model width, F expert width.
#pragma once

#include "kernels/grouped_products.h"
#include "moe/device_route.h"
#include "moe/experts.h"

namespace conclave::moe {

class DeviceExperts {
 public:
  // Gate and up of all experts of this rank lie after one another in memory, then down.
  DeviceExperts(const nn::Parameters& parameters, const std::vector<ExpertWeights>& experts);

  struct Saved {
    Tensor h_N2F;                  // gate and up before the activation, from forward
    Tensor dy_ND, dh_N2F, act_NF;  // from backward_input, for the weight gradients
  };
  // Forward in two halves: rows are not needed any more when the pre-activations are made.
  void pre_activations(const Tensor& x_ND, const kernels::RowGroups& groups, Saved& saved) const;
  Tensor results(const Tensor& gates_N, const kernels::RowGroups& groups, const Saved& saved) const;
  struct RowGradients {
    Tensor x_ND, gates_N;
  };
  RowGradients backward_input(const Tensor& dy_ND, const Tensor& gates_N, const kernels::RowGroups& groups,
                              Saved& saved) const;
  void backward_weight(const Tensor& x_ND, const kernels::RowGroups& groups, const Saved& saved,
                       nn::Gradients& gradients) const;
  std::vector<nn::ParameterId> parameters() const;

 private:
  void add_weight_gradient(const Tensor& dy, const Tensor& x, const std::vector<nn::ParameterId>& ids,
                           const kernels::RowGroups& groups, nn::Gradients& gradients) const;

  const nn::Parameters& parameters_;
  std::vector<nn::ParameterId> gate_up_, down_;
};

struct DeviceExpertSlots {
  nn::Slot input;     // x [T, D]
  nn::Slot weights;   // [T, K]
  nn::Slot decision;  // object: DeviceDecision
  nn::Slot output;    // y [T, D]
};

class DeviceExpertStage : public nn::Stage {
 public:
  // All experts of the layer.
  DeviceExpertStage(nn::StageSite site, const nn::Parameters& parameters, const std::vector<ExpertWeights>& experts,
                    const DeviceExpertSlots& slots);
  std::vector<nn::Slot> inputs() const override { return {slots_.input, slots_.weights, slots_.decision}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  std::vector<nn::ParameterId> parameters() const override { return experts_.parameters(); }
  nn::Redo redo() const override { return nn::Redo::kFfn; }
  void forward(nn::Frame& frame) override;
  void forward_again(nn::Frame& frame) override;  // all but the output, which no backward reads
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  struct Saved {
    Tensor gates_N;
    DeviceExperts::Saved experts;
  };
  const kernels::SlotMap& rows_of(nn::Frame& frame) const;
  kernels::RowGroups groups(nn::Frame& frame) const;
  // Rows are gathered again from the layer's input whenever they are needed.
  Tensor rows(nn::Frame& frame) const;
  Saved& with_gates(nn::Frame& frame) const;

  DeviceExperts experts_;
  DeviceExpertSlots slots_;
};

}  // namespace conclave::moe
