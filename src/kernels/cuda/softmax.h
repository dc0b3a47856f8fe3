// SPDX-License-Identifier: Apache-2.0
// Softmax of rows on the device, in fp32; kernels/softmax.h says what is computed. The router's own kernel is in
// routing.h.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct SoftmaxRows {
  int64_t rows, n;
  const float* logits_TE;
  float *probs_TE, *lse_T;
};
void softmax_rows(const SoftmaxRows& a, Stream stream);

}  // namespace conclave::kernels::cuda
