// SPDX-License-Identifier: Apache-2.0
#include "moe/compressors/cross_polytope.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace conclave::moe {
namespace {

// x = H x, H of Sylvester's construction.
void hadamard(std::span<double> x) {
  for (size_t half = 1; half < x.size(); half *= 2)
    for (size_t block = 0; block < x.size(); block += 2 * half)
      for (size_t i = block; i < block + half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
}

}  // namespace

CrossPolytope::CrossPolytope(const Random& random, int64_t width, std::optional<int64_t> dimensions)
    : size_(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(width)))),
      dimensions_(std::min(dimensions.value_or(size_), size_)),
      signs_(kRounds * size_) {
  for (size_t i = 0; i < signs_.size(); ++i) signs_[i] = random.bits(i) & 1 ? -1.0 : 1.0;
}

void CrossPolytope::rotate(std::span<double> row_P) const {
  for (int round = 0; round < kRounds; ++round) {
    for (int64_t i = 0; i < size_; ++i) row_P[i] *= signs_[round * size_ + i];
    hadamard(row_P);
  }
}

int32_t CrossPolytope::nearest(std::span<double> row_P) const {
  rotate(row_P);
  int64_t best = 0;
  for (int64_t i = 1; i < dimensions_; ++i)
    if (std::abs(row_P[i]) > std::abs(row_P[best])) best = i;
  return static_cast<int32_t>(2 * best + (row_P[best] < 0));
}

}  // namespace conclave::moe
