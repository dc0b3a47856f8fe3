// SPDX-License-Identifier: Apache-2.0
// The kernels of rows.h. Rows: one warp each. Element-wise: a thread takes kWidth neighbours.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rows.h"

namespace conclave::kernels::cuda {

inline constexpr int kElementThreads = 256;

template <typename T, int kWidth>
__global__ void gather_rows_kernel(GatherRows a) {
  const int64_t i = row_of_warp();
  if (i >= a.count) return;
  const int64_t row = a.rows_N[i];
  T* to = static_cast<T*>(a.dst_ND) + i * a.n;
  if (row < 0 || row >= a.source_rows) {
    float fill[kWidth];
    for (float& f : fill) f = row < 0 ? 0.0f : NAN;
    for (int64_t c = lane_index() * kWidth; c < a.n; c += kWarp * kWidth) store(fill, to + c);
    return;
  }
  const T* from = static_cast<const T*>(a.src_TD) + row * a.n;
  for (int64_t c = lane_index() * kWidth; c < a.n; c += kWarp * kWidth) {
    *reinterpret_cast<Pack<T, kWidth>*>(to + c) = *reinterpret_cast<const Pack<T, kWidth>*>(from + c);
  }
}

// One warp per place in the sorted list and tile of columns; the first place of a run works for the whole run.
template <typename T, int kWidth>
__global__ void embedding_backward_kernel(EmbeddingBackward a) {
  const int64_t tiles = (a.n + kWarp * kWidth - 1) / (kWarp * kWidth);
  const int64_t task = row_of_warp();
  const int64_t first = task / tiles, c = (task % tiles * kWarp + lane_index()) * kWidth;
  if (first >= a.tokens || c >= a.n) return;
  const int32_t token = a.sorted_tokens_T[first];
  if (token < 0 || token >= a.vocabulary || (first > 0 && a.sorted_tokens_T[first - 1] == token)) return;
  float sum[kWidth];
  load(a.dweight_VD + token * a.n + c, sum);
  for (int64_t i = first; i < a.tokens && a.sorted_tokens_T[i] == token; ++i) {
    float g[kWidth];
    load(static_cast<const T*>(a.dy_TD) + a.order_T[i] * a.n + c, g);
    for (int k = 0; k < kWidth; ++k) sum[k] += g[k];
  }
  store(sum, a.dweight_VD + token * a.n + c);
}

template <typename T, int kWidth>
__global__ void add_bias_kernel(AddBias a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  T* y = static_cast<T*>(a.y_TO) + row * a.n;
  for (int64_t c = lane_index() * kWidth; c < a.n; c += kWarp * kWidth) {
    float sum[kWidth], bias[kWidth];
    load(y + c, sum);
    load(static_cast<const T*>(a.bias_O) + c, bias);
    for (int i = 0; i < kWidth; ++i) sum[i] += bias[i];
    store(sum, y + c);
  }
}

template <typename Y, typename X, int kWidth>
__global__ void add_kernel(Add a) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x) * kWidth;
  if (i >= a.count) return;
  float sum[kWidth], more[kWidth];
  load(static_cast<const Y*>(a.y) + i, sum);
  load(static_cast<const X*>(a.x) + i, more);
  for (int k = 0; k < kWidth; ++k) sum[k] += more[k];
  store(sum, static_cast<Y*>(a.y) + i);
}

}  // namespace conclave::kernels::cuda
