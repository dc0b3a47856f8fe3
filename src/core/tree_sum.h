// SPDX-License-Identifier: Apache-2.0
// The one order in which things numbered 0..n-1 are added wherever a sum must not depend on how they were dealt out: a
// fixed binary tree. A range splits at the largest power of two below its size, so blocks of 2^j aligned things are
// whole subtrees, and what is left over is folded from the smallest block to the largest: 14 = 8 + (4 + 2).
#pragma once

#include <bit>
#include <cstddef>
#include <span>

namespace conclave {

// How many of `count` >= 2 things belong to the left branch.
inline size_t tree_left(size_t count) { return std::bit_ceil(count) / 2; }

// The sum on the tree; 0 of nothing.
template <typename T>
T tree_sum(std::span<const T> values) {
  if (values.empty()) return T{0};
  if (values.size() == 1) return values[0];
  const size_t left = tree_left(values.size());
  return tree_sum(values.first(left)) + tree_sum(values.subspan(left));
}

}  // namespace conclave
