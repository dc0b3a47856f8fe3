// SPDX-License-Identifier: Apache-2.0
// One pass over flat fp32 buffers on the device; kernels/optimizer.h says what is computed. Results that the host wants
// (a norm, an index) are left in device memory: who reads them decides when to wait.
#pragma once

#include "kernels/cuda/types.h"
#include "kernels/loops_table.h"

namespace conclave::kernels::cuda {

// Elements per slice: kernels::kNormSlice, whose sums these are, bit for bit.
inline constexpr int64_t kSlice = 65536;
constexpr int64_t slices_of(int64_t count) { return (count + kSlice - 1) / kSlice; }

// sums_S[s] = the sum of squares of slice s.
void slice_sums_of_squares(const float* x, int64_t count, double* sums_S, Stream stream);

// total = the sum of `count` numbers on the tree of core/tree_sum.h. `values` is overwritten.
void tree_sum(double* values, int64_t count, double* total, Stream stream);

// index = the first NaN or infinity of x, or -1. `found_S`: one number per slice of memory to work in.
void first_non_finite(const float* x, int64_t count, int64_t* found_S, int64_t* index, Stream stream);

// Parameters that one block updates: `count` of them from `begin` in the parameters (and in their bf16 copy) and from
// `at` in moments and gradients.
struct AdamWBlock {
  int64_t begin, at;
  int32_t count, decays;  // decays: 0 = no weight decay
};
struct AdamW {
  AdamWFactors factors;           // of parameters that decay; the others have a decay factor of 1
  const double* gradient_factor;  // null: 1; else one number that the gradients are also multiplied by
  const AdamWBlock* blocks;
  int64_t block_count;
  float *parameters, *m, *v;
  const float* gradients;
  Bf16* copy;  // null: none; else the new parameters rounded to bf16
};
void adamw(const AdamW& a, Stream stream);

}  // namespace conclave::kernels::cuda
