// SPDX-License-Identifier: Apache-2.0
// Cross entropy on the device; kernels/cross_entropy.h says what is computed. Logits of type `real`, turned into their
// gradient in place; everything per row is fp32. A target outside the vocabulary makes its row's loss NaN.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct CrossEntropy {
  Real real;
  int64_t rows, n;
  bool gradient;
  const int32_t* targets_N;
  const float* mask_N;
  void* logits_NV;
  float* loss_N;
};
void cross_entropy_rows(const CrossEntropy& a, Stream stream);

// The columns `first` ... `first` + n - 1 of a vocabulary spread over ranks.
struct CrossEntropyPart {
  Real real;
  int64_t rows, n, first;
  bool gradient;
  const int32_t* targets_N;
  const float* mask_N;
  void* logits_NV;
  float *lse_N, *target_N;  // first step
  const float* share_N;     // second step
  float* loss_N;            // second step
};
void cross_entropy_part(const CrossEntropyPart& a, Stream stream);
void finish_cross_entropy_part(const CrossEntropyPart& a, Stream stream);

}  // namespace conclave::kernels::cuda
