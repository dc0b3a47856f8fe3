// SPDX-License-Identifier: Apache-2.0
// What methods carry across steps, as a copy on the device: the host moves the originals between steps, stages read the
// copies.
#pragma once

#include "moe/method_state.h"

namespace conclave::moe {

class DeviceState {
 public:
  // `state` outlives it and keeps its entries.
  DeviceState(const ModelState& state, at::Device device) : state_(state), device_(device) {}
  // Copies all of it again, without waiting. Before a step or an evaluation.
  void refresh();
  // Undefined when there is none.
  Tensor get(int layer, std::string_view name) const;

 private:
  const ModelState& state_;
  at::Device device_;
  std::vector<MethodState> layers_;
};

}  // namespace conclave::moe
