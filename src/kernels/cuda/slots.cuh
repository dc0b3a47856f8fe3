// SPDX-License-Identifier: Apache-2.0
// The kernels of slots.h.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/slots.h"

namespace conclave::kernels::cuda {

inline constexpr int kSlotWarps = 8;
inline constexpr int kSlotThreads = kSlotWarps * kWarp;
// Neighbouring picks of one warp.
inline constexpr int64_t kWarpPicks = kSlotChunk / kSlotWarps;

// The expert of pick i, -1 for padding.
__device__ inline int expert_of(const Slots& a, int64_t i) {
  const int id = i < a.picks ? a.ids_TK[i] : -1;
  return id < a.experts ? id : -1;
}

// counts[warp][e]: how often expert e is in each warp's picks. Whole numbers, so the order of adding does not show.
__device__ inline void count_warp_picks(const Slots& a, int32_t* counts) {
  for (int i = threadIdx.x; i < kSlotWarps * a.experts; i += kSlotThreads) counts[i] = 0;
  __syncthreads();
  const int64_t first = blockIdx.x * kSlotChunk + warp_index() * kWarpPicks;
  for (int64_t i = first + lane_index(); i < first + kWarpPicks; i += kWarp) {
    const int id = expert_of(a, i);
    if (id >= 0) atomicAdd(&counts[warp_index() * a.experts + id], 1);
  }
  __syncthreads();
}

__global__ void count_picks_kernel(Slots a) {
  int32_t* counts = shared_memory<int32_t>();
  count_warp_picks(a, counts);
  for (int e = threadIdx.x; e < a.experts; e += kSlotThreads) {
    int sum = 0;
    for (int warp = 0; warp < kSlotWarps; ++warp) sum += counts[warp * a.experts + e];
    a.chunk_counts[static_cast<int64_t>(blockIdx.x) * a.experts + e] = sum;
  }
}

// starts[e] = the first slot of expert e; returns the number of rows. By the first warp, 32 experts at a time.
__device__ inline int scan_counts(const Slots& a, int32_t* starts) {
  int carried = 0;
  for (int first = 0; first < a.experts; first += kWarp) {
    const int e = first + lane_index(), own = e < a.experts ? a.counts_E[e] : 0;
    int end = own;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, distance);
      if (lane_index() >= distance) end += before;
    }
    if (e < a.experts) starts[e] = carried + end - own;
    if (e < a.experts && blockIdx.x == 0) a.ends_E[e] = carried + end;
    carried += __shfl_sync(kAllLanes, end, kWarp - 1);
  }
  return carried;
}

// `next`: each warp's next slot of each expert.
__device__ inline void place_warp_picks(const Slots& a, int32_t* next) {
  const int64_t first = blockIdx.x * kSlotChunk + warp_index() * kWarpPicks;
  for (int64_t tile = first; tile < first + kWarpPicks; tile += kWarp) {
    const int64_t i = tile + lane_index();
    const int id = expert_of(a, i);
    const unsigned same = __match_any_sync(kAllLanes, id);
    const int before = __popc(same & ((1u << lane_index()) - 1));  // of this expert, by lower lanes
    const int slot = id >= 0 ? next[id] + before : -1;
    __syncwarp();
    if (id >= 0 && before == 0) next[id] += __popc(same);
    __syncwarp();
    if (i >= a.picks) continue;
    const bool fits = slot >= 0 && slot < a.picks;
    a.slots_TK[i] = fits ? slot : -1;
    if (!fits) continue;
    a.rows_N[slot] = static_cast<int32_t>(i / a.top_k);
    a.picks_N[slot] = static_cast<int32_t>(i);
  }
}

__global__ void place_picks_kernel(Slots a) {
  int32_t* next = shared_memory<int32_t>();  // [kSlotWarps][experts]
  int32_t* starts = next + kSlotWarps * a.experts;
  count_warp_picks(a, next);
  if (warp_index() == 0) {
    const int rows = scan_counts(a, starts);
    if (lane_index() == 0) starts[a.experts] = rows;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < a.experts; e += kSlotThreads) {
    int slot = starts[e];
    for (int64_t chunk = 0; chunk < blockIdx.x; ++chunk) slot += a.chunk_counts[chunk * a.experts + e];
    for (int warp = 0; warp < kSlotWarps; ++warp) {
      const int count = next[warp * a.experts + e];
      next[warp * a.experts + e] = slot;
      slot += count;
    }
  }
  __syncthreads();
  place_warp_picks(a, next + warp_index() * a.experts);
  // Slots that no pick has.
  const int64_t end =
      (blockIdx.x + int64_t{1}) * kSlotChunk < a.picks ? (blockIdx.x + int64_t{1}) * kSlotChunk : a.picks;
  for (int64_t slot = blockIdx.x * kSlotChunk + threadIdx.x; slot < end; slot += kSlotThreads) {
    if (slot >= starts[a.experts]) a.rows_N[slot] = a.picks_N[slot] = -1;
  }
}

template <typename T, int kWidth>
__global__ void aggregate_kernel(Aggregate a) {
  const int64_t token = row_of_warp();
  if (token >= a.tokens) return;
  const int32_t* slots = a.slots_TK + token * a.top_k;
  for (int64_t c = lane_index() * kWidth; c < a.n; c += kWarp * kWidth) {
    float sum[kWidth] = {};
    for (int j = 0; j < a.top_k; ++j) {
      const int64_t row = slots[j];
      if (row < 0) continue;
      float v[kWidth];
      for (float& missing : v) missing = NAN;
      if (row < a.rows) load(static_cast<const T*>(a.rows_ND) + row * a.n + c, v);
      for (int i = 0; i < kWidth; ++i) sum[i] += v[i];
    }
    store(sum, static_cast<T*>(a.y_TD) + token * a.n + c);
  }
}

}  // namespace conclave::kernels::cuda
