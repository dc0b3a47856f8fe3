// SPDX-License-Identifier: Apache-2.0
// The kernels of swiglu.h: one warp per row.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/swiglu.h"

namespace conclave::kernels::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T, int kWidth>
__global__ void swiglu_kernel(Swiglu a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const T* gate = static_cast<const T*>(a.h_N2F) + row * 2 * a.n;
  T* out = static_cast<T*>(a.out_NF) + row * a.n;
  const float scale = a.scale_N == nullptr ? 1.0f : a.scale_N[row];
  for (int64_t c = lane_index() * kWidth; c < a.n; c += kWarp * kWidth) {
    float g[kWidth], u[kWidth];
    load(gate + c, g);
    load(gate + a.n + c, u);
    for (int i = 0; i < kWidth; ++i) g[i] = scale * (g[i] * sigmoid(g[i]) * u[i]);
    store(g, out + c);
  }
}

template <typename T, int kWidth>
__global__ void swiglu_backward_kernel(SwigluBackward a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const T* gate = static_cast<const T*>(a.h_N2F) + row * 2 * a.n;
  const T* dout = static_cast<const T*>(a.dout_NF) + row * a.n;
  T* dgate = static_cast<T*>(a.dh_N2F) + row * 2 * a.n;
  T* out = static_cast<T*>(a.out_NF) + row * a.n;
  const float scale = a.scale_N == nullptr ? 1.0f : a.scale_N[row];
  float dscale = 0;
  for (int64_t c = lane_index() * kWidth; c < a.n; c += kWarp * kWidth) {
    float g[kWidth], u[kWidth], d[kWidth];
    load(gate + c, g);
    load(gate + a.n + c, u);
    load(dout + c, d);
    for (int i = 0; i < kWidth; ++i) {
      const float s = sigmoid(g[i]), silu = g[i] * s, activation = silu * u[i];
      dscale += d[i] * activation;
      g[i] = d[i] * scale * u[i] * (s * (1 + g[i] * (1 - s)));
      u[i] = d[i] * scale * silu;
      d[i] = scale * activation;
    }
    store(g, dgate + c);
    store(u, dgate + a.n + c);
    store(d, out + c);
  }
  dscale = warp_sum(dscale);
  if (a.dscale_N != nullptr && lane_index() == 0) a.dscale_N[row] = dscale;
}

}  // namespace conclave::kernels::cuda
