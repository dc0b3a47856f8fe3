// SPDX-License-Identifier: Apache-2.0
// The kernels of norm.h: one block per row.
#pragma once

#include "kernels/cuda/norm.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace conclave::kernels::cuda {

template <typename T, int kWidth>
__global__ void rms_norm_kernel(RmsNorm a) {
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * kWidth;
  const T* x = static_cast<const T*>(a.x_TD) + row * a.n;
  const T* weight = static_cast<const T*>(a.weight_D);
  T* y = static_cast<T*>(a.y_TD) + row * a.n;
  float sum = 0;
  for (int64_t c = threadIdx.x * kWidth; c < a.n; c += step) {
    float v[kWidth];
    load(x + c, v);
    for (int i = 0; i < kWidth; ++i) sum += v[i] * v[i];
  }
  sum = block_sum(sum, shared_memory<float>());
  const float rstd = 1.0f / sqrtf(sum / static_cast<float>(a.n) + a.eps);
  for (int64_t c = threadIdx.x * kWidth; c < a.n; c += step) {
    float v[kWidth], w[kWidth];
    load(x + c, v);
    load(weight + c, w);
    for (int i = 0; i < kWidth; ++i) v[i] = w[i] * (v[i] * rstd);
    store(v, y + c);
  }
  if (threadIdx.x == 0) a.rstd_T[row] = rstd;
}

template <typename T, int kWidth>
__global__ void rms_norm_backward_input_kernel(RmsNormBackward a) {
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * kWidth;
  const T* x = static_cast<const T*>(a.x_TD) + row * a.n;
  const T* dy = static_cast<const T*>(a.dy_TD) + row * a.n;
  const T* weight = static_cast<const T*>(a.weight_D);
  T* dx = static_cast<T*>(a.dx_TD) + row * a.n;
  float product = 0;
  for (int64_t c = threadIdx.x * kWidth; c < a.n; c += step) {
    float v[kWidth], g[kWidth], w[kWidth];
    load(x + c, v);
    load(dy + c, g);
    load(weight + c, w);
    for (int i = 0; i < kWidth; ++i) product += g[i] * w[i] * v[i];
  }
  product = block_sum(product, shared_memory<float>());
  const float rstd = a.rstd_T[row], back = product * rstd * rstd / static_cast<float>(a.n);
  for (int64_t c = threadIdx.x * kWidth; c < a.n; c += step) {
    float v[kWidth], g[kWidth], w[kWidth], sum[kWidth];
    load(x + c, v);
    load(dy + c, g);
    load(weight + c, w);
    load(dx + c, sum);
    for (int i = 0; i < kWidth; ++i) sum[i] += rstd * (g[i] * w[i] - v[i] * back);
    store(sum, dx + c);
  }
}

}  // namespace conclave::kernels::cuda
