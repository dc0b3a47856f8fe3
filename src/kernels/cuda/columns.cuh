// SPDX-License-Identifier: Apache-2.0
// The kernels of columns.h.
#pragma once

#include "kernels/cuda/columns.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace conclave::kernels::cuda {

inline constexpr int kColumnThreads = 128;
// The second kernel: one warp of columns, and so many threads that share the partial sums of a column.
inline constexpr int kColumnShares = 8;

// A block: kColumnThreads * kWidth columns of kColumnRows rows.
template <typename T, int kWidth>
__global__ void column_partials_kernel(ColumnSum a) {
  const int64_t tiles = (a.n + kColumnThreads * kWidth - 1) / (kColumnThreads * kWidth);
  const int64_t block = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t c = (tile * kColumnThreads + threadIdx.x) * kWidth;
  if (c >= a.n) return;
  const T *dy = static_cast<const T*>(a.dy_TD), *x = static_cast<const T*>(a.x_TD);
  const int64_t end = (block + 1) * kColumnRows < a.rows ? (block + 1) * kColumnRows : a.rows;
  float sum[kWidth] = {};
  for (int64_t row = block * kColumnRows; row < end; ++row) {
    float g[kWidth], v[kWidth];
    load(dy + row * a.n + c, g);
    if (x != nullptr) {
      load(x + row * a.n + c, v);
      for (int i = 0; i < kWidth; ++i) g[i] *= v[i] * a.rstd_T[row];
    }
    for (int i = 0; i < kWidth; ++i) sum[i] += g[i];
  }
  for (int i = 0; i < kWidth; ++i) a.partials[block * a.n + c + i] = sum[i];
}

__global__ void add_column_partials_kernel(ColumnSum a) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane_index();
  const int64_t blocks = (a.rows + kColumnRows - 1) / kColumnRows;
  float* shares = shared_memory<float>();
  float sum = 0;
  for (int64_t block = warp_index(); c < a.n && block < blocks; block += kColumnShares) {
    sum += a.partials[block * a.n + c];
  }
  shares[threadIdx.x] = sum;
  __syncthreads();
  if (warp_index() != 0 || c >= a.n) return;
  for (int share = 1; share < kColumnShares; ++share) sum += shares[share * kWarp + lane_index()];
  a.sum_D[c] += sum;
}

}  // namespace conclave::kernels::cuda
