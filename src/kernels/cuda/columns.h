// SPDX-License-Identifier: Apache-2.0
// Sums down the rows, without atomics: blocks of 64 rows make partial sums, which are then added in one fixed order.
// Results are fp32 and added to what is there.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

// Rows of one partial sum, as on the CPU.
inline constexpr int64_t kColumnRows = 64;

// Floats of memory that a sum over `rows` x `n` needs.
constexpr int64_t column_partials(int64_t rows, int64_t n) { return (rows + kColumnRows - 1) / kColumnRows * n; }

struct ColumnSum {
  Real real;
  int64_t rows, n;
  const void* dy_TD;
  const void* x_TD;     // null: sum of dy; else sum of dy * x * rstd
  const float* rstd_T;  // with x_TD
  float* sum_D;         // added to
  float* partials;      // column_partials(rows, n)
};
void sum_columns(const ColumnSum& a, Stream stream);

}  // namespace conclave::kernels::cuda
