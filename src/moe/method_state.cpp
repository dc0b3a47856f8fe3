// SPDX-License-Identifier: Apache-2.0
#include "moe/method_state.h"

#include "core/error.h"

namespace conclave::moe {

void MethodState::declare(std::string name, Tensor value) {
  check(!has(name), "each piece of a method's state has a name of its own");
  entries_.push_back({std::move(name), std::move(value)});
}

bool MethodState::has(std::string_view name) const { return get(name).defined(); }

Tensor MethodState::get(std::string_view name) const {
  for (const Entry& entry : entries_)
    if (entry.name == name) return entry.value;
  return {};
}

}  // namespace conclave::moe
