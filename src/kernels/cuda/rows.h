// SPDX-License-Identifier: Apache-2.0
// Moving and adding rows on the device; kernels/rows.h says what is computed. Rows of n numbers of type `real`. Indices
// cannot be refused from a kernel: a row beyond the source is read as NaN, which the loss then shows.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct GatherRows {
  Real real;
  int64_t source_rows, count, n;
  const void* src_TD;
  const int32_t* rows_N;  // negative: zeros
  void* dst_ND;
};
void gather_rows(const GatherRows& a, Stream stream);

// dweight[sorted_tokens[i]] += dy[order[i]]: equal tokens lie together, in the order in which they are to be added.
// The blocks of a run of equal tokens split its columns, never its rows. Tokens that are not in [0, vocabulary) are
// passed over.
struct EmbeddingBackward {
  Real real;
  int64_t tokens, vocabulary, n;
  const void* dy_TD;
  const int32_t* sorted_tokens_T;
  const int64_t* order_T;
  float* dweight_VD;
};
void embedding_backward(const EmbeddingBackward& a, Stream stream);

// y[t] += bias.
struct AddBias {
  Real real;
  int64_t rows, n;
  const void* bias_O;
  void* y_TO;
};
void add_bias(const AddBias& a, Stream stream);

// y += x; with `x_real` bf16 and `y_real` fp32 also the accumulation of weight gradients.
struct Add {
  Real y_real, x_real;
  int64_t count;
  const void* x;
  void* y;
};
void add(const Add& a, Stream stream);

}  // namespace conclave::kernels::cuda
