// SPDX-License-Identifier: Apache-2.0
// Sums of what experts gave, before weights, over tokens: [experts, D] fixed-point numbers. Integers add up to the same
// bits in whatever order micro-batches, ranks and parts of an expert's width contribute, as counts do.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace conclave::moe {

using OutputSums = std::vector<int64_t>;

constexpr double kOutputUnit = 1.0 / (int64_t{1} << 24);

// A contribution of at most 2^30, so that 512 of them fit; what is larger counts as that, and what is not finite as
// zero: the loss of such a step is not finite either, and the step is left out.
inline int64_t fixed_point(double sum) {
  constexpr double kMost = int64_t{1} << 30;
  if (!std::isfinite(sum)) return 0;
  return std::llround(std::clamp(sum, -kMost, kMost) / kOutputUnit);
}

}  // namespace conclave::moe
