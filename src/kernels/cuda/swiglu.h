// SPDX-License-Identifier: Apache-2.0
// SwiGLU with one factor per row, on the device; kernels/swiglu.h says what it computes. scale_N and dscale_N are fp32.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct Swiglu {
  Real real;
  int64_t rows, n;  // n: F, half the width of h
  const void* h_N2F;
  const float* scale_N;  // null: 1
  void* out_NF;
};
void swiglu(const Swiglu& a, Stream stream);

struct SwigluBackward {
  Real real;
  int64_t rows, n;
  const void *dout_NF, *h_N2F;
  const float* scale_N;  // null: 1
  void* dh_N2F;          // may be h_N2F
  float* dscale_N;       // null: not wanted
  void* out_NF;          // the scaled activations again
};
void swiglu_backward(const SwigluBackward& a, Stream stream);

}  // namespace conclave::kernels::cuda
