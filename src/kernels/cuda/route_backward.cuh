// SPDX-License-Identifier: Apache-2.0
// The gradient of route.cuh: one warp per token, laid out the same way.
#pragma once

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/route.h"

namespace conclave::kernels::cuda {

// From the gradients of the token's weights.
template <int kPerLane>
__device__ void through_weights(const RouteBackward& a, int64_t token, const float (&prob)[kPerLane],
                                float (&dz)[kPerLane]) {
  const RouteShape& shape = a.shape;
  const int k = shape.top_k;
  const float *raw = a.raw_TK + token * k, *weights = a.weights_TK + token * k, *dw = a.dweights_TK + token * k;
  const int32_t* ids = a.ids_TK + token * k;
  float sum = 0, weighted = 0, inner = 0;
  for (int j = 0; j < k; ++j) sum += raw[j], weighted += dw[j] * weights[j];
  const bool divided = shape.normalise && sum > 0;
  const auto draw = [&](int j) { return divided ? (shape.scale * dw[j] - weighted) / sum : shape.scale * dw[j]; };
  if (!shape.sigmoid) {
    for (int j = 0; j < k; ++j) inner += raw[j] * draw(j);
    for (int i = 0; i < kPerLane && !shape.over_picks; ++i) dz[i] = -prob[i] * inner;
  }
  for (int j = 0; j < k; ++j) {
    const float gradient = shape.sigmoid ? draw(j) * raw[j] * (1 - raw[j]) : raw[j] * (draw(j) - inner);
    for (int i = 0; i < kPerLane; ++i) {
      if (lane_index() + i * kWarp == ids[j]) dz[i] = gradient;
    }
  }
}

// Through the softmax, or through the normalised sigmoid.
template <int kPerLane>
__device__ void through_affinity(const RouteBackward& a, const double* gradient_E, const float (&prob)[kPerLane],
                                 float (&dz)[kPerLane]) {
  double total = 0, inner = 0;
  for (int i = 0; i < kPerLane; ++i) total += static_cast<double>(prob[i]);
  total = a.shape.sigmoid ? warp_sum(total) : 1.0;
  const double unit = total > 0 ? 1 / total : 0.0;  // scores that all underflowed have no affinity
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    if (e < a.shape.experts) inner += gradient_E[e] * prob[i] * unit;
  }
  inner = warp_sum(inner);
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    if (e >= a.shape.experts) continue;
    const double p = prob[i], slope = a.shape.sigmoid ? p * (1 - p) * unit : p;
    dz[i] += static_cast<float>(slope * (gradient_E[e] - inner));
  }
}

template <int kPerLane>
__global__ void route_backward_kernel(RouteBackward a) {
  const int64_t token = row_of_warp();
  if (token >= a.shape.sequences * a.shape.length) return;
  const int E = a.shape.experts;
  float prob[kPerLane], dz[kPerLane] = {};
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    prob[i] = e < E ? a.probs_TE[token * E + e] : 0.0f;
  }
  if (a.segment_ids_T[token] >= 0) {
    if (a.dweights_TK != nullptr) through_weights(a, token, prob, dz);
    if (a.affinity_gradient_BE != nullptr) {
      through_affinity(a, a.affinity_gradient_BE + token / a.shape.length * E, prob, dz);
    }
    const float lse = a.lse_T[token];
    for (int i = 0; i < kPerLane && a.z_scale != 0; ++i) {
      const int e = lane_index() + i * kWarp;
      if (e < E) dz[i] += static_cast<float>(a.z_scale * lse) * expf(a.logits_TE[token * E + e] - lse);
    }
  }
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_index() + i * kWarp;
    if (e < E) a.dlogits_TE[token * E + e] = dz[i];
  }
}

}  // namespace conclave::kernels::cuda
