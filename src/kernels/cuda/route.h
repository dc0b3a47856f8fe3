// SPDX-License-Identifier: Apache-2.0
// The router on the device: kernels/moe_device.h says what is computed. Scores, picks, weights and statistics in one
// pass over the logits, one warp per token; a second launch adds up the statistics of chunks of tokens, in one order.
// T = sequences · length tokens, E experts, K picks.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

inline constexpr int64_t kMostExperts = 512;
// Tokens whose statistics one block adds; chunks do not cross sequences.
inline constexpr int64_t kRouteChunk = 32;

struct RouteShape {
  int64_t sequences, length;
  int32_t experts, top_k, groups, kept_groups, group_best;
  bool sigmoid, over_picks, normalise;
  float scale;
};
constexpr int64_t chunks_of(const RouteShape& shape) {
  return shape.sequences * ((shape.length + kRouteChunk - 1) / kRouteChunk);
}

inline constexpr int kRouteWarps = 4;  // of a block
// Shared memory of a block: statistics of its tokens, and room for one token of each warp.
constexpr int64_t route_shared_bytes(const RouteShape& shape) {
  const int64_t E = shape.experts, totals = (E + 2) * int64_t{sizeof(double)} + 3 * E * int64_t{sizeof(int32_t)};
  return totals + kRouteWarps * (E + shape.groups + 2 * shape.top_k + shape.kept_groups) * int64_t{sizeof(float)};
}
// What a block gets on every GPU without asking for more.
inline constexpr int64_t kMostSharedBytes = int64_t{48} << 10;

struct Route {
  RouteShape shape;
  const float *logits_TE, *bias_E;  // bias: null = none
  const int32_t* segment_ids_T;
  float *probs_TE, *lse_T, *raw_TK, *weights_TK;
  int32_t *ids_TK, *counted_TK;  // counted: null without bias
  int32_t *chosen_BE, *first_BE, *selected_E;
  double *affinity_BE, *sums_2;
  int32_t* chunk_counts;  // memory to work in: [chunks, 3, E]
  double* chunk_sums;     // the same: [chunks, E + 2]
};
void route(const Route& a, Stream stream);

struct RouteBackward {
  RouteShape shape;
  const float *logits_TE, *probs_TE, *lse_T, *raw_TK, *weights_TK;
  const int32_t *ids_TK, *segment_ids_T;
  const float* dweights_TK;            // null: none
  const double* affinity_gradient_BE;  // null: none
  double z_scale;
  float* dlogits_TE;
};
void route_backward(const RouteBackward& a, Stream stream);

}  // namespace conclave::kernels::cuda
