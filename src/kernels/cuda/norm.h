// SPDX-License-Identifier: Apache-2.0
// RMSNorm on the device; kernels/norm.h says what it computes. T rows of D numbers of type `real`; rstd_T and gradients
// of weights are fp32.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct RmsNorm {
  Real real;
  int64_t rows, n;
  float eps;
  const void *x_TD, *weight_D;
  void* y_TD;
  float* rstd_T;
};
void rms_norm(const RmsNorm& a, Stream stream);

struct RmsNormBackward {
  Real real;
  int64_t rows, n;
  const void *dy_TD, *x_TD, *weight_D;
  const float* rstd_T;
  void* dx_TD;  // added to
};
void rms_norm_backward_input(const RmsNormBackward& a, Stream stream);

}  // namespace conclave::kernels::cuda
