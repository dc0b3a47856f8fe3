// SPDX-License-Identifier: Apache-2.0
// Rotary positions on the device; kernels/rope.h says what it computes.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct Rope {
  Real real;
  int64_t tokens, heads, half, positions;
  bool inverse;
  const int32_t* position_ids_T;  // a position beyond the table makes its token NaN
  const float *cos_PH, *sin_PH;
  void* x_TND;  // [tokens, heads, 2 * half], in place
};
void rope(const Rope& a, Stream stream);

}  // namespace conclave::kernels::cuda
