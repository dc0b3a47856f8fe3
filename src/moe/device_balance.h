// SPDX-License-Identifier: Apache-2.0
// The gradients of the auxiliary losses on a device: those of losses/switch.cpp and losses/z.cpp, from statistics that
// the host never sees. Their values, for reports, are made on the host from the same statistics once a step.
#pragma once

#include <span>

#include "kernels/moe_device.h"
#include "moe/device_state.h"
#include "moe/moe_config.h"
#include "nn/device_batch.h"

namespace conclave::moe {

// All MoE layers of one micro-batch, in layer order.
struct DeviceLossView {
  std::span<const kernels::Routed* const> layers;
  const DeviceState& state;
  const nn::DeviceBatch& batch;
};

class DeviceBalance {
 public:
  // Losses of type switch and z only.
  DeviceBalance(const BalanceConfig& config, int64_t top_k);
  // Sets what of `gradients` follows from the losses for the logits of `layer`.
  void add_gradient(const DeviceLossView& view, int layer, kernels::RouteGradients& gradients) const;

 private:
  // The gradient with respect to the affinities, [B, E] or [1, E] where it is the same for all sequences.
  Tensor switch_gradient(const BalanceLoss& loss, const DeviceLossView& view, int layer) const;
  Tensor counts(const BalanceLoss& loss, const DeviceLossView& view, int layer) const;

  std::vector<BalanceLoss> losses_;
  int64_t top_k_;
};

}  // namespace conclave::moe
