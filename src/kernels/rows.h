// SPDX-License-Identifier: Apache-2.0
// Moving and adding rows: gather for the dispatch, ordered sums for the combine, biases. Float or
// double. Sums run in the order the caller gives, never in the order threads arrive.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace conclave::kernels {

// dst[i] = src[rows[i]], or zeros where rows[i] < 0 (padding).
void gather_rows(const Tensor& src_TD, std::span<const int32_t> rows, Tensor& dst_ND);
// The same with int32 indices on the rows' device; those of a device that are out of range are not noticed.
void gather_rows(const Tensor& src_TD, const Tensor& rows_N, Tensor& dst_ND);

// y[t] = src[r0] + src[r1] + ... for the rows r in token_rows[token_offsets[t] ... token_offsets[t + 1]), in that
// order; zeros where there are none. With `accumulate` the rows are added to what y[t] holds. token_offsets has T + 1
// entries.
void sum_rows(const Tensor& src_ND, std::span<const int32_t> token_offsets, std::span<const int32_t> token_rows,
              bool accumulate, Tensor& y_TD);

// A row of one of several tensors.
struct RowPlace {
  int32_t tensor, row;
};

// sum_rows over rows that lie in several tensors of equal width: the bits are those of the tensors in one.
void sum_placed_rows(std::span<const Tensor> sources, std::span<const int32_t> token_offsets,
                     std::span<const RowPlace> token_places, Tensor& y_TD);

// y[t] += bias.
void add_bias(Tensor& y_TO, const Tensor& bias_O);

// dbias += the sum of all rows of dy: blocks of 64 rows, added in row order whatever the number of threads.
void sum_columns(const Tensor& dy_TO, Tensor& dbias_O);

// y += x, element by element; any shape.
void add(Tensor& y, const Tensor& x);

}  // namespace conclave::kernels
