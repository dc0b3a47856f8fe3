// SPDX-License-Identifier: Apache-2.0
// What randomness of a router is keyed by, equal on all ranks: draws depend on it and on global token ids alone, so
// layouts, recomputation and resumed runs see the same ones. An evaluation draws nothing.
#pragma once

#include "core/error.h"
#include "core/random.h"

namespace conclave::moe {

struct Moment {
  uint64_t seed = 1;
  int64_t step = 0;
  int layer = 0;  // among the MoE layers
  bool training = false;

  Random random(Purpose purpose) const {
    check(training, "only training draws");
    return {seed, purpose, static_cast<uint64_t>(step), static_cast<uint32_t>(layer)};
  }
};

}  // namespace conclave::moe
