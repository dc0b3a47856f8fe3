// SPDX-License-Identifier: Apache-2.0
// What an MoE layer computes on a device besides products: routing, the order of rows, the sum of experts. All tensors
// are contiguous and on one device, index tensors int32; no function waits for the device or looks at its numbers. On
// the CPU the plain references run, which are what CUDA kernels are compared with. T tokens, E experts, K picks of each
// token, N = T·K places for rows, B sequences of T / B tokens.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace conclave::kernels {

// How scores become picks and weights: docs/moe.md, "Router".
struct RouteRule {
  int64_t top_k = 1;
  bool sigmoid = false;                 // scores are sigmoid(z); else softmax(z)
  bool over_picks = false;              // softmax over the picked logits only: chosen by logits
  bool normalise = false;               // weights are divided by their sum over the token's picks
  double scale = 1;                     // of weights, after the division
  int64_t groups = 1, kept_groups = 1;  // picks come from the best groups of neighbouring experts
  int64_t group_best = 1;               // a group is worth the sum of so many of its best selection scores, 1 or 2
};

// What a router says of a micro-batch, before anything is moved. Floating tensors have the logits' type, sums fp64.
struct Routed {
  Tensor logits_TE = {}, probs_TE = {};  // probs: scores of all experts, softmax or sigmoid
  Tensor lse_T = {};                     // logsumexp of the logits, whatever the scores are
  Tensor ids_TK = {};                    // best first; of equal scores the lower expert; -1 for padding
  Tensor counted_TK = {};  // the same by scores without bias: what balancing losses count. ids_TK where there is none
  Tensor raw_TK = {};      // scores of the picks before division and scale; 0 for padding
  Tensor weights_TK = {};  // 0 for padding
  // Statistics; padding counts in nothing.
  Tensor chosen_BE = {}, first_BE = {};  // int32: of counted_TK, and of its first column
  Tensor selected_E = {};                // int32: of ids_TK; all of it is dispatched
  Tensor affinity_BE = {};               // fp64: sums of the scores, divided by their sum over experts where `sigmoid`
  Tensor sums_2 = {};                    // fp64: over tokens, of lse² and of the entropy of the affinities (nats)
};

// `logits_TE` are float (on the CPU also double); `bias_E` of the same type is added for the choice only, undefined =
// none; `segment_ids_BS` below 0 is padding. Sums run in one order: equal calls give equal bits. NaN scores are picked
// last.
Routed route(const Tensor& logits_TE, const Tensor& bias_E, const Tensor& segment_ids_BS, const RouteRule& rule);

// Gradients of what came out of a routing.
struct RouteGradients {
  Tensor weights_TK = {};   // undefined = none
  Tensor affinity_BE = {};  // fp64, equal for the tokens of a sequence: of balancing losses; undefined = none
  double z_scale = 0;       // the z-loss adds z_scale · lse · softmax(z)
};

// The gradient of the logits; zero rows for padding. Selection has no gradient.
Tensor route_backward(const Routed& routed, const Tensor& segment_ids_BS, const RouteGradients& gradients,
                      const RouteRule& rule);

// Where each pick's row lies: rows sorted by (expert, token), those of nobody (picks of padding) at the end.
struct SlotMap {
  Tensor ends_E;    // rows of expert e: ends[e - 1] ... ends[e]
  Tensor rows_N;    // token of each row; -1 = nobody's
  Tensor picks_N;   // t·K + j of each row; -1 = nobody's
  Tensor slots_TK;  // row of each pick; -1 for padding
};

// `counts_E` are how often each expert is in ids_TK. Stable: rows of one expert are in token order.
SlotMap slot_map(const Tensor& ids_TK, const Tensor& counts_E);

// y[t] = the sum of the rows slots[t, 0], slots[t, 1], ... in that order (below 0: nothing), summed in fp32 for rows of
// bf16. Gates were applied before the down projection, so nothing is weighted here, and the gradient is gather_rows of
// dy by rows_N. It is also the gradient of gathering tokens by rows_N.
void aggregate(const Tensor& rows_ND, const Tensor& slots_TK, Tensor& y_TD);

}  // namespace conclave::kernels
