// SPDX-License-Identifier: Apache-2.0
// The kernels of optimizer.h.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/optimizer.h"
#include "kernels/cuda/reduce.cuh"

namespace conclave::kernels::cuda {

inline constexpr int kFlatThreads = 256;
inline constexpr int64_t kChunk =
    1024;  // of the CPU's loops: a chunk is summed over 32 lanes, chunks one after another

// A block per slice. One warp per chunk takes the place of the CPU's 32 lanes, in the same order; squares of floats
// are exact in fp64, so fused multiply-add changes nothing.
__global__ void slice_sums_kernel(const float* x, int64_t count, double* sums_S) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSlice;
  const int64_t end = first + kSlice < count ? first + kSlice : count;
  constexpr int kChunks = static_cast<int>(kSlice / kChunk);
  double* chunk_sums = shared_memory<double>();
  for (int chunk = warp_index(); chunk < kChunks; chunk += kFlatThreads / kWarp) {
    const int64_t begin = first + chunk * kChunk;
    double sum = 0;
    for (int64_t i = begin + lane_index(); i < begin + kChunk && i < end; i += kWarp) {
      sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_down_sync(kAllLanes, sum, distance);
    if (lane_index() == 0) chunk_sums[chunk] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0;
  for (int chunk = 0; chunk < kChunks; ++chunk) sum += chunk_sums[chunk];
  sums_S[blockIdx.x] = sum;
}

// One block. Neighbours are added, then neighbouring sums, a last one without a neighbour is carried: that is the tree
// of core/tree_sum.h from its leaves.
__global__ void __launch_bounds__(1024) tree_sum_kernel(double* values, int64_t count, double* total) {
  for (int64_t distance = 1; distance < count; distance *= 2) {
    for (int64_t i = threadIdx.x * 2 * distance; i + distance < count; i += blockDim.x * 2 * distance) {
      values[i] += values[i + distance];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) *total = count == 0 ? 0.0 : values[0];
}

inline constexpr int64_t kNowhere = INT64_MAX;

__device__ inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// The least of all threads' numbers.
__device__ inline int64_t block_least(int64_t value, int64_t* scratch) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = lesser(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) value = lesser(value, scratch[warp]);
  return value;
}

__global__ void first_non_finite_kernel(const float* x, int64_t count, int64_t* found_S) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSlice;
  const int64_t end = first + kSlice < count ? first + kSlice : count;
  int64_t found = kNowhere;
  for (int64_t i = first + threadIdx.x; i < end && found == kNowhere; i += blockDim.x) {
    if (!isfinite(x[i])) found = i;
  }
  found = block_least(found, shared_memory<int64_t>());
  if (threadIdx.x == 0) found_S[blockIdx.x] = found;
}

__global__ void least_index_kernel(const int64_t* found_S, int64_t slices, int64_t* index) {
  int64_t found = kNowhere;
  for (int64_t s = threadIdx.x; s < slices; s += blockDim.x) found = lesser(found, found_S[s]);
  found = block_least(found, shared_memory<int64_t>());
  if (threadIdx.x == 0) *index = found == kNowhere ? -1 : found;
}

// The loop of kernels/loops.inl, for kWidth parameters from the block's i-th.
template <int kWidth>
__device__ void update(const AdamW& a, const AdamWBlock& block, int64_t i, float scale) {
  const float decay = block.decays != 0 ? static_cast<float>(a.factors.decay) : 1.0f;
  const float one_minus_beta1 = static_cast<float>(a.factors.one_minus_beta1);
  const float beta2 = static_cast<float>(a.factors.beta2);
  const float one_minus_beta2 = static_cast<float>(a.factors.one_minus_beta2);
  const float step_size = static_cast<float>(a.factors.step_size), eps = static_cast<float>(a.factors.eps);
  const float root = static_cast<float>(a.factors.root_correction);
  float p[kWidth], m[kWidth], v[kWidth], g[kWidth];
  load(a.parameters + block.begin + i, p);
  load(a.m + block.at + i, m);
  load(a.v + block.at + i, v);
  load(a.gradients + block.at + i, g);
  for (int k = 0; k < kWidth; ++k) {
    const float gradient = g[k] * scale;
    m[k] += one_minus_beta1 * (gradient - m[k]);
    v[k] = beta2 * v[k] + one_minus_beta2 * gradient * gradient;
    p[k] = decay * p[k] - step_size * (m[k] / (sqrtf(v[k]) / root + eps));
  }
  store(p, a.parameters + block.begin + i);
  store(m, a.m + block.at + i);
  store(v, a.v + block.at + i);
  if (a.copy != nullptr) store(p, a.copy + block.begin + i);
}

// `aligned`: the buffers begin at multiples of 16 bytes (the copy of 8).
__global__ void adamw_kernel(AdamW a, bool aligned) {
  const AdamWBlock block = a.blocks[blockIdx.x];
  const double more = a.gradient_factor == nullptr ? 1.0 : *a.gradient_factor;
  const float scale = static_cast<float>(a.factors.grad_scale * more);
  const bool whole = aligned && block.begin % 4 == 0 && block.at % 4 == 0;
  const int64_t by_four = whole ? block.count / 4 * 4 : 0;
  for (int64_t i = threadIdx.x * 4; i < by_four; i += blockDim.x * 4) update<4>(a, block, i, scale);
  for (int64_t i = by_four + threadIdx.x; i < block.count; i += blockDim.x) update<1>(a, block, i, scale);
}

}  // namespace conclave::kernels::cuda
