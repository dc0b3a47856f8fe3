// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over a warp and over a block, always in the same order: the bits depend on the values and the shape
// of the launch, never on which warp comes first. Every thread of the warp or block must call, and gets the result.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"

namespace conclave::kernels::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMaxWarps = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

template <typename T>
__device__ inline T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// NaN is passed over.
__device__ inline float warp_max(float value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, distance);
    value = other > value || value != value ? other : value;
  }
  return value;
}

// `scratch`: kMaxWarps values of shared memory that nobody else uses meanwhile.
template <typename T>
__device__ inline T block_sum(T value, T* scratch) {
  value = warp_sum(value);
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  T sum = scratch[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) sum += scratch[warp];
  __syncthreads();
  return sum;
}

__device__ inline float block_max(float value, float* scratch) {
  value = warp_max(value);
  if (lane_index() == 0) scratch[warp_index()] = value;
  __syncthreads();
  float most = scratch[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) {
    most = scratch[warp] > most || most != most ? scratch[warp] : most;
  }
  __syncthreads();
  return most;
}

inline constexpr size_t kScratchBytes = kMaxWarps * sizeof(double);

// Threads for a block that works on one row of n elements, `width` at a time.
inline int threads_for_row(int64_t n, int width, int most) {
  int threads = kWarp;
  while (threads < most && static_cast<int64_t>(threads) * width < n) threads *= 2;
  return threads;
}

// Kernels of one warp per row run this many rows a block.
inline constexpr int kRowsPerBlock = 8;
inline constexpr int kRowThreads = kRowsPerBlock * kWarp;

__device__ inline int64_t row_of_warp() { return static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + warp_index(); }

inline Shape shape_of_rows(int64_t rows) { return {(rows + kRowsPerBlock - 1) / kRowsPerBlock, kRowThreads}; }

}  // namespace conclave::kernels::cuda
