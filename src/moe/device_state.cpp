// SPDX-License-Identifier: Apache-2.0
#include "moe/device_state.h"

namespace conclave::moe {

void DeviceState::refresh() {
  layers_.clear();
  for (const MethodState& layer : state_.layers) {
    MethodState& copies = layers_.emplace_back();
    for (const auto& [name, value] : layer.entries()) {
      // From memory that is not pinned a device copies while the host stands by.
      const Tensor host = device_.is_cuda() ? value.pin_memory() : value;
      copies.declare(name, host.to(device_, value.scalar_type(), /*non_blocking=*/true, /*copy=*/true));
    }
  }
}

Tensor DeviceState::get(int layer, std::string_view name) const {
  check(layer < std::ssize(layers_), "the state is on the device before a layer runs");
  return layers_[layer].get(name);
}

}  // namespace conclave::moe
