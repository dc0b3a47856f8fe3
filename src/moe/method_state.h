// SPDX-License-Identifier: Apache-2.0
// What a routing or balancing method carries from step to step: named tensors, fp32 or int64, equal on all ranks. They
// are in checkpoints, outside the optimizer and weight decay, and move once per optimizer step.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace conclave::moe {

class MethodState {
 public:
  struct Entry {
    std::string name;
    Tensor value;
  };

  // Throws BugError when the name is taken.
  void declare(std::string name, Tensor value);
  bool has(std::string_view name) const;
  // Undefined when there is none.
  Tensor get(std::string_view name) const;
  template <typename T>
  std::span<T> values(std::string_view name) const {
    return elements<T>(get(name));
  }
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

// The state of a model: of each MoE layer, and of methods that look at all of them.
struct ModelState {
  std::vector<MethodState> layers;
  MethodState shared;
};

}  // namespace conclave::moe
