// SPDX-License-Identifier: Apache-2.0
// The kernel of rope.h: one warp per token and head.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rope.h"

namespace conclave::kernels::cuda {

template <typename T, int kWidth>
__global__ void rope_kernel(Rope a) {
  const int64_t row = row_of_warp();
  if (row >= a.tokens * a.heads) return;
  T* first = static_cast<T*>(a.x_TND) + row * 2 * a.half;
  T* second = first + a.half;
  const int64_t position = a.position_ids_T[row / a.heads];
  const bool known = position >= 0 && position < a.positions;
  const int64_t angle = known ? position * a.half : 0;
  for (int64_t c = lane_index() * kWidth; c < a.half; c += kWarp * kWidth) {
    float u[kWidth], v[kWidth], cos[kWidth], sin[kWidth];
    load(first + c, u);
    load(second + c, v);
    load(a.cos_PH + angle + c, cos);
    load(a.sin_PH + angle + c, sin);
    for (int i = 0; i < kWidth; ++i) {
      const float s = a.inverse ? -sin[i] : sin[i], x = u[i], y = v[i];
      u[i] = known ? x * cos[i] - y * s : NAN;
      v[i] = known ? y * cos[i] + x * s : NAN;
    }
    store(u, first + c);
    store(v, second + c);
  }
}

}  // namespace conclave::kernels::cuda
