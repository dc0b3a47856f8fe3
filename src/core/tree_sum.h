// SPDX-License-Identifier: Apache-2.0
// The fixed binary tree of every promised sum: blocks of a power of two, aligned to their size, add left half + right half; what is
// left over is folded from the smallest block to the largest. Splitting the range at such a block changes no bit.
#pragma once

#include <bit>
#include <cstddef>
#include <span>

namespace conclave {

inline double tree_sum(std::span<const double> values) {
  if (values.empty()) return 0.0;
  if (values.size() == 1) return values[0];
  const size_t floor = std::bit_floor(values.size());
  const size_t half = floor == values.size() ? floor / 2 : floor;
  return tree_sum(values.first(half)) + tree_sum(values.subspan(half));
}

}  // namespace conclave
