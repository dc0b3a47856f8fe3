// SPDX-License-Identifier: Apache-2.0
// The kernels of route.h. A warp works on a token: lane l holds experts l, l + 32, ..., kPerLane of them.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/route.h"

namespace conclave::kernels::cuda {

inline constexpr int kRouteThreads = kRouteWarps * kWarp;

__device__ inline float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// Greater keys are picked first: by score, then by the lower number; NaN after everything else.
__device__ inline uint64_t pick_key(float score, int number) {
  const float zero_is_zero = score + 0.0f;  // -0 and 0 are a tie
  const uint32_t bits = __float_as_uint(zero_is_zero);
  const uint32_t ordered = score != score ? 0u : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(number));
}

__device__ inline uint64_t warp_greatest(uint64_t key) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, key, distance);
    key = other > key ? other : key;
  }
  return key;
}

// picks[0 ... k) become the numbers of the k best of `count` scores. `count` is at most 32 * kPerLane.
template <int kPerLane>
__device__ void pick_best(const float (&score)[kPerLane], int count, int k, int32_t* picks) {
  bool taken[kPerLane];
  for (int i = 0; i < kPerLane; ++i) taken[i] = lane_index() + i * kWarp >= count;
  for (int j = 0; j < k; ++j) {
    uint64_t best = 0;
    for (int i = 0; i < kPerLane; ++i) {
      const uint64_t key = pick_key(score[i], lane_index() + i * kWarp);
      best = !taken[i] && key > best ? key : best;
    }
    const int number = static_cast<int>(0xffffffffu - static_cast<uint32_t>(warp_greatest(best)));
    for (int i = 0; i < kPerLane; ++i) taken[i] = taken[i] || lane_index() + i * kWarp == number;
    if (lane_index() == 0) picks[j] = number;
  }
  __syncwarp();
}

// What a warp keeps in shared memory.
struct RouteScratch {
  float* scores;   // [experts]
  float* groups;   // [groups]
  float* raw;      // [top_k]
  int32_t* picks;  // [top_k]
  int32_t* kept;   // [kept_groups]
};

__device__ inline RouteScratch route_scratch(const RouteShape& shape, unsigned char* memory) {
  const int floats = shape.experts + shape.groups + 2 * shape.top_k + shape.kept_groups;
  float* own = reinterpret_cast<float*>(memory) + warp_index() * floats;
  RouteScratch scratch{own, own + shape.experts, own + shape.experts + shape.groups, nullptr, nullptr};
  scratch.picks = reinterpret_cast<int32_t*>(scratch.raw + shape.top_k);
  scratch.kept = scratch.picks + shape.top_k;
  return scratch;
}

// Experts outside of the kept groups get a score of minus infinity.
template <int kPerLane>
__device__ void limit_to_groups(const RouteShape& shape, const RouteScratch& scratch, float (&score)[kPerLane]) {
  if (shape.groups == 1 || shape.kept_groups == shape.groups) return;
  const int size = shape.experts / shape.groups;
  for (int i = 0; i < kPerLane; ++i) {
    if (lane_index() + i * kWarp < shape.experts) scratch.scores[lane_index() + i * kWarp] = score[i];
  }
  __syncwarp();
  float value[kPerLane];
  for (int i = 0; i < kPerLane; ++i) {
    const int group = lane_index() + i * kWarp;
    uint64_t best = 0, second = 0;
    for (int e = 0; e < size && group < shape.groups; ++e) {
      const uint64_t key = pick_key(scratch.scores[group * size + e], e);
      second = key > best ? best : key > second ? key : second;
      best = key > best ? key : best;
    }
    value[i] = 0;
    if (group >= shape.groups) continue;
    const int first = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
    const int next = static_cast<int>(0xffffffffu - static_cast<uint32_t>(second));
    value[i] += scratch.scores[group * size + first];
    if (shape.group_best > 1) value[i] += scratch.scores[group * size + next];
  }
  pick_best(value, shape.groups, shape.kept_groups, scratch.kept);
  for (int i = 0; i < kPerLane; ++i) {
    bool kept = false;
    for (int g = 0; g < shape.kept_groups; ++g) kept = kept || (lane_index() + i * kWarp) / size == scratch.kept[g];
    if (!kept) score[i] = -INFINITY;
  }
  __syncwarp();
}

// The picks' scores and weights, from their raw scores in scratch.raw.
__device__ inline void weigh_picks(const Route& a, const RouteScratch& scratch, int64_t token) {
  const RouteShape& shape = a.shape;
  float top = -INFINITY, exponentials = 1, sum = 0;
  if (shape.over_picks) {
    for (int j = 0; j < shape.top_k; ++j) top = scratch.raw[j] > top ? scratch.raw[j] : top;
    exponentials = 0;
    for (int j = 0; j < shape.top_k; ++j) exponentials += expf(scratch.raw[j] - top);
  }
  const auto raw = [&](int j) { return shape.over_picks ? expf(scratch.raw[j] - top) / exponentials : scratch.raw[j]; };
  for (int j = 0; j < shape.top_k; ++j) sum += raw(j);
  const bool divide = shape.normalise && sum > 0;
  for (int j = lane_index(); j < shape.top_k; j += kWarp) {
    a.raw_TK[token * shape.top_k + j] = raw(j);
    a.weights_TK[token * shape.top_k + j] = (divide ? raw(j) / sum : raw(j)) * shape.scale;
    a.ids_TK[token * shape.top_k + j] = scratch.picks[j];
  }
}

// A block's statistics, in shared memory. Counts of whole numbers may be added in any order; sums are added warp after
// warp.
struct RouteTotals {
  double* sums;                        // [experts + 2]: affinities, lse squared, entropy
  int32_t *chosen, *first, *selected;  // [experts] each
};

__device__ inline RouteTotals route_totals(const RouteShape& shape, unsigned char* memory) {
  double* sums = reinterpret_cast<double*>(memory);
  int32_t* counts = reinterpret_cast<int32_t*>(sums + shape.experts + 2);
  return {sums, counts, counts + shape.experts, counts + 2 * shape.experts};
}

template <int kPerLane>
struct LaneSums {
  double affinity[kPerLane] = {}, lse_squared = 0, entropy = 0;
};

template <int kPerLane>
__device__ void add_affinities(const RouteShape& shape, const float (&prob)[kPerLane], float lse,
                               LaneSums<kPerLane>& sums) {
  double total = 0;
  for (int i = 0; i < kPerLane; ++i) total += static_cast<double>(prob[i]);
  total = shape.sigmoid ? warp_sum(total) : 1.0;
  for (int i = 0; i < kPerLane; ++i) {
    const double p = total > 0 ? prob[i] / total : 0.0;
    sums.affinity[i] += p;
    if (p > 0) sums.entropy -= p * static_cast<double>(logf(static_cast<float>(p)));
  }
  if (lane_index() == 0) sums.lse_squared += static_cast<double>(lse) * static_cast<double>(lse);
}

// Scores of a token; experts that do not exist have a probability of 0. Returns the logsumexp.
template <int kPerLane>
__device__ float score_token(const Route& a, int64_t token, float (&logit)[kPerLane], float (&prob)[kPerLane]) {
  const int E = a.shape.experts;
  float max = -INFINITY, sum = 0;
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    logit[i] = e < E ? a.logits_TE[token * E + e] : -INFINITY;
    max = logit[i] > max ? logit[i] : max;
  }
  max = warp_max(max);
  for (int i = 0; i < kPerLane; ++i) {
    prob[i] = lane_index() + i * kWarp < E ? expf(logit[i] - max) : 0.0f;
    sum += prob[i];
  }
  sum = warp_sum(sum);
  const float lse = max + logf(sum);
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    if (e >= E) continue;
    prob[i] = a.shape.sigmoid ? logistic(logit[i]) : prob[i] / sum;
    a.probs_TE[token * E + e] = prob[i];
  }
  if (lane_index() == 0) a.lse_T[token] = lse;
  return lse;
}

template <int kPerLane>
__device__ void route_token(const Route& a, int64_t token, const RouteScratch& scratch, const RouteTotals& totals,
                            LaneSums<kPerLane>& sums) {
  const RouteShape& shape = a.shape;
  float logit[kPerLane], prob[kPerLane], score[kPerLane];
  const float lse = score_token(a, token, logit, prob);
  if (a.segment_ids_T[token] < 0) {
    for (int j = lane_index(); j < shape.top_k; j += kWarp) {
      const int64_t pick = token * shape.top_k + j;
      a.ids_TK[pick] = -1;
      if (a.counted_TK != nullptr) a.counted_TK[pick] = -1;
      a.raw_TK[pick] = a.weights_TK[pick] = 0;
    }
    return;
  }
  add_affinities(shape, prob, lse, sums);
  const auto choose = [&](bool with_bias) {
    for (int i = 0; i < kPerLane; ++i) {
      const int e = lane_index() + i * kWarp;
      score[i] = shape.over_picks ? logit[i] : prob[i];
      if (with_bias && e < shape.experts) score[i] += a.bias_E[e];
    }
    limit_to_groups(shape, scratch, score);
    pick_best(score, shape.experts, shape.top_k, scratch.picks);
  };
  const auto count = [&](int32_t* counts) {
    for (int j = lane_index(); j < shape.top_k; j += kWarp) atomicAdd(&counts[scratch.picks[j]], 1);
  };
  if (a.counted_TK != nullptr) {
    choose(false);
    for (int j = lane_index(); j < shape.top_k; j += kWarp) a.counted_TK[token * shape.top_k + j] = scratch.picks[j];
    count(totals.chosen);
    if (lane_index() == 0) atomicAdd(&totals.first[scratch.picks[0]], 1);
    __syncwarp();
    choose(true);
  } else {
    choose(false);
    count(totals.chosen);
    if (lane_index() == 0) atomicAdd(&totals.first[scratch.picks[0]], 1);
  }
  count(totals.selected);
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    for (int j = 0; j < shape.top_k; ++j) {
      if (scratch.picks[j] == e) scratch.raw[j] = shape.over_picks ? logit[i] : prob[i];
    }
  }
  __syncwarp();
  weigh_picks(a, scratch, token);
  __syncwarp();
}

template <int kPerLane>
__device__ void write_totals(const Route& a, const RouteTotals& totals, const LaneSums<kPerLane>& sums) {
  const int E = a.shape.experts;
  const double lse_squared = warp_sum(sums.lse_squared), entropy = warp_sum(sums.entropy);
  for (int warp = 0; warp < kRouteWarps; ++warp) {
    for (int i = 0; i < kPerLane && warp == warp_index(); ++i) {
      const int e = lane_index() + i * kWarp;
      if (e < E) totals.sums[e] += sums.affinity[i];
    }
    if (warp == warp_index() && lane_index() == 0) {
      totals.sums[E] += lse_squared;
      totals.sums[E + 1] += entropy;
    }
    __syncthreads();
  }
  const int64_t chunk = blockIdx.x;
  for (int i = threadIdx.x; i < E + 2; i += kRouteThreads) a.chunk_sums[chunk * (E + 2) + i] = totals.sums[i];
  for (int i = threadIdx.x; i < 3 * E; i += kRouteThreads) a.chunk_counts[chunk * 3 * E + i] = totals.chosen[i];
}

// A block per chunk.
template <int kPerLane>
__global__ void route_kernel(Route a) {
  const int64_t chunks = (a.shape.length + kRouteChunk - 1) / kRouteChunk;  // of a sequence
  const int64_t sequence = blockIdx.x / chunks, first = blockIdx.x % chunks * kRouteChunk;
  const int64_t end = first + kRouteChunk < a.shape.length ? first + kRouteChunk : a.shape.length;
  unsigned char* memory = shared_memory<unsigned char>();
  const RouteTotals totals = route_totals(a.shape, memory);
  for (int i = threadIdx.x; i < a.shape.experts + 2; i += kRouteThreads) totals.sums[i] = 0;
  for (int i = threadIdx.x; i < 3 * a.shape.experts; i += kRouteThreads) totals.chosen[i] = 0;
  const RouteScratch scratch =
      route_scratch(a.shape, reinterpret_cast<unsigned char*>(totals.selected + a.shape.experts));
  __syncthreads();
  LaneSums<kPerLane> sums;
  for (int64_t i = first + warp_index(); i < end; i += kRouteWarps) {
    route_token<kPerLane>(a, sequence * a.shape.length + i, scratch, totals, sums);
  }
  __syncthreads();
  write_totals(a, totals, sums);
}

// One warp per number: (sequence, expert), then each expert, then the two sums.
__global__ void route_totals_kernel(Route a) {
  const int E = a.shape.experts;
  const int64_t per_sequence = (a.shape.length + kRouteChunk - 1) / kRouteChunk;
  const int64_t task = row_of_warp(), cells = a.shape.sequences * E;
  if (task >= cells + E + 2) return;
  const bool cell = task < cells;
  const int64_t e = cell ? task % E : task - cells;  // E and E + 1: the sums
  const int64_t first = cell ? task / E * per_sequence : 0;
  const int64_t end = cell ? first + per_sequence : a.shape.sequences * per_sequence;
  int chosen = 0, firsts = 0, selected = 0;
  double sum = 0;
  for (int64_t chunk = first + lane_index(); chunk < end; chunk += kWarp) {
    sum += a.chunk_sums[chunk * (E + 2) + e];
    if (e >= E) continue;
    chosen += a.chunk_counts[chunk * 3 * E + e];
    firsts += a.chunk_counts[chunk * 3 * E + E + e];
    selected += a.chunk_counts[chunk * 3 * E + 2 * E + e];
  }
  chosen = warp_sum(chosen), firsts = warp_sum(firsts), selected = warp_sum(selected), sum = warp_sum(sum);
  if (lane_index() != 0) return;
  if (cell) {
    a.chosen_BE[task] = chosen;
    a.first_BE[task] = firsts;
    a.affinity_BE[task] = sum;
  } else if (e < E) {
    a.selected_E[e] = selected;
  } else {
    a.sums_2[e - E] = sum;
  }
}

}  // namespace conclave::kernels::cuda
