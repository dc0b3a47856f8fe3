// SPDX-License-Identifier: Apache-2.0
// The words in which every method describes itself: what a table row says beside its name.
#pragma once

#include <string_view>

namespace conclave::moe {

// What a token's routing in training depends on (methods.md 0.4).
enum class Causality {
  kTokenLocal,      // C0: its own representation
  kPositionCausal,  // C1: earlier positions, too
  kLagged,          // C2: earlier steps, too
  kLeaky,           // C3: other tokens of the micro-batch, later ones included: the training loss is optimistic
};

constexpr std::string_view name_of(Causality causality) {
  constexpr std::string_view kNames[] = {"C0", "C1", "C2", "C3"};
  return kNames[static_cast<int>(causality)];
}

struct MethodInfo {
  std::string_view type = {};    // as the configuration has it
  std::string_view what = {};    // one line
  std::string_view source = {};  // paper
  std::string_view equation = {};
  Causality causality = Causality::kTokenLocal;
  std::string_view evaluation = "the same";  // its form outside of training
  std::string_view exports = {};             // which formats of other stacks can say it
};

}  // namespace conclave::moe
