// SPDX-License-Identifier: Apache-2.0
// The class of a router under its options: its row (moe/router.h) says what it is by default, and here stands what a
// key makes of it.
#pragma once

#include <span>

#include "moe/router.h"

namespace conclave::moe {

struct ClassOfOption {
  std::string_view type, option;  // "hash", "feature: previous"
  Causality causality;
  bool (*given)(const RouterConfig& config);
};
std::span<const ClassOfOption> classes_of_options();

// Of the router of a known type.
Causality causality_of(const RouterConfig& config);
// "C0, C1 with feature: previous", for lists; without such options "C0".
std::string class_text(const MethodInfo& info);

}  // namespace conclave::moe
