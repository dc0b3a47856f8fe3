// SPDX-License-Identifier: Apache-2.0
// The kernels of cross_entropy.h: one block per row. Maximum and sum are found in one pass: a thread
// rescales its sum when it meets a greater number.
#pragma once

#include "kernels/cuda/cross_entropy.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"

namespace conclave::kernels::cuda {

struct Logarithm {
  float max, sum;  // log(sum(exp(row))) is max + log(sum)
};

template <int kWidth, typename T>
__device__ Logarithm log_sum_exp(const T* row, int64_t n, float* scratch) {
  float max = -INFINITY, sum = 0;
  for (int64_t c = threadIdx.x * kWidth; c < n; c += static_cast<int64_t>(blockDim.x) * kWidth) {
    float v[kWidth];
    load(row + c, v);
    float most = max;
    for (int i = 0; i < kWidth; ++i) most = v[i] > most ? v[i] : most;
    if (most > max) sum *= expf(max - most);
    max = most;
    for (int i = 0; i < kWidth; ++i) sum += v[i] == -INFINITY ? 0.0f : expf(v[i] - max);
  }
  const float most = block_max(max, scratch);
  if (max < most) sum *= expf(max - most);
  return {most, block_sum(sum, scratch)};
}

// row = factor * softmax(row), minus `factor` at column `target` (-1: nowhere).
template <int kWidth, typename T>
__device__ void softmax_gradient(T* row, int64_t n, Logarithm logarithm, float factor, int64_t target) {
  const float scale = factor / logarithm.sum;
  for (int64_t c = threadIdx.x * kWidth; c < n; c += static_cast<int64_t>(blockDim.x) * kWidth) {
    float v[kWidth];
    load(row + c, v);
    for (int i = 0; i < kWidth; ++i) v[i] = expf(v[i] - logarithm.max) * scale - (c + i == target ? factor : 0.0f);
    store(v, row + c);
  }
}

template <int kWidth, typename T>
__device__ void clear_row(T* row, int64_t n) {
  const float zeros[kWidth] = {};
  for (int64_t c = threadIdx.x * kWidth; c < n; c += static_cast<int64_t>(blockDim.x) * kWidth) store(zeros, row + c);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(1024) cross_entropy_rows_kernel(CrossEntropy a) {
  const int64_t i = blockIdx.x, target = a.targets_N[i];
  T* row = static_cast<T*>(a.logits_NV) + i * a.n;
  const float mask = a.mask_N[i];
  if (mask == 0) {
    if (a.gradient) clear_row<kWidth>(row, a.n);
    if (threadIdx.x == 0) a.loss_N[i] = 0;
    return;
  }
  // Read before the barriers of log_sum_exp, after which other threads overwrite the row.
  const float logit = target >= 0 && target < a.n ? widen(row[target]) : NAN;
  const Logarithm logarithm = log_sum_exp<kWidth>(row, a.n, shared_memory<float>());
  if (threadIdx.x == 0) a.loss_N[i] = mask * (logarithm.max + logf(logarithm.sum) - logit);
  if (a.gradient) softmax_gradient<kWidth>(row, a.n, logarithm, mask, target);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(1024) cross_entropy_part_kernel(CrossEntropyPart a) {
  const int64_t i = blockIdx.x, column = a.targets_N[i] - a.first;
  T* row = static_cast<T*>(a.logits_NV) + i * a.n;
  const float mask = a.mask_N[i];
  if (mask == 0) {
    if (a.gradient) clear_row<kWidth>(row, a.n);
    if (threadIdx.x == 0) a.lse_N[i] = a.target_N[i] = 0;
    return;
  }
  const float logit = column >= 0 && column < a.n ? widen(row[column]) : 0.0f;
  const Logarithm logarithm = log_sum_exp<kWidth>(row, a.n, shared_memory<float>());
  if (threadIdx.x == 0) {
    a.lse_N[i] = logarithm.max + logf(logarithm.sum);
    a.target_N[i] = logit;
  }
  if (a.gradient) softmax_gradient<kWidth>(row, a.n, logarithm, mask, -1);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(1024) finish_cross_entropy_part_kernel(CrossEntropyPart a) {
  const int64_t i = blockIdx.x, column = a.targets_N[i] - a.first;
  const float mask = a.mask_N[i], share = a.share_N[i];
  if (threadIdx.x == 0) a.loss_N[i] = mask == 0 ? 0.0f : a.loss_N[i] * mask;
  if (mask == 0 || !a.gradient) return;
  T* row = static_cast<T*>(a.logits_NV) + i * a.n;
  for (int64_t c = threadIdx.x * kWidth; c < a.n; c += static_cast<int64_t>(blockDim.x) * kWidth) {
    float v[kWidth];
    load(row + c, v);
    for (int k = 0; k < kWidth; ++k) v[k] = v[k] * share - (c + k == column ? mask : 0.0f);
    store(v, row + c);
  }
}

}  // namespace conclave::kernels::cuda
