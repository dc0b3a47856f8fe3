// SPDX-License-Identifier: Apache-2.0
// Asks this machine's BLAS whether a row of a matrix product keeps its bits whatever rows are multiplied with it, and
// whatever the number of threads: what `reduction: canonical` stands on. It measures a few shapes; it proves nothing
// about others.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "core/tensor.h"

namespace conclave::kernels {

// One weight [columns, depth], used as x·Wᵀ (forward), dy·W (gradient of x) and dyᵀ·x (gradient of W).
struct ProductShape {
  int64_t depth;    // K
  int64_t columns;  // N
};

// What to compare with a product over `kProbeRows` rows on one thread.
struct InvarianceProbe {
  std::span<const ProductShape> shapes;
  std::span<const int64_t> row_counts;  // each at most kProbeRows
  std::span<const int> threads;
};

inline constexpr int64_t kProbeRows = 256;

// Whether the forward and input-gradient products of fewer rows (from the first row, from row 16 and up to the last
// row) have the bits of the whole product, in fp32, for every shape, row count and thread count. Restores the number of
// threads.
bool rows_are_invariant(const InvarianceProbe& probe, std::string* first_difference = nullptr);

// Whether weight gradients have the bits of one thread, in fp32, for every shape, row count and thread count.
bool weight_gradients_are_invariant(const InvarianceProbe& probe, std::string* first_difference = nullptr);

// Whether a product has the same bits on `threads` threads as on one. Restores the number of threads.
bool threads_do_not_show(const std::function<Tensor()>& product, int threads);

// Why `reduction: canonical` would not be bitwise here for the products of a model with up to `threads` threads; empty
// if the probes pass. Row counts are multiples of 16, as the padding rule makes them; sizes above 512 are tried as the
// size below with the same remainder by 16, columns below 64 as nn/linear.h pads them. Under 0.1 s a shape.
std::string canonical_obstacle(int threads, std::span<const ProductShape> shapes);

}  // namespace conclave::kernels
