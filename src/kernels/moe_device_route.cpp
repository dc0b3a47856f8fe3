// SPDX-License-Identifier: Apache-2.0
// The references of route and route_backward.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/arguments.h"
#include "kernels/moe_device.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"
#include "kernels/softmax.h"

namespace conclave::kernels {
namespace {

constexpr int64_t kWork = 8;  // element operations for each score

void check_route(const Tensor& logits_TE, const Tensor& bias_E, const Tensor& segment_ids_BS, const RouteRule& rule) {
  const char* name = "route";
  check_tensors(name, {{logits_TE, "logits_TE"}});
  check_dimensions(name, {logits_TE, "logits_TE"}, 2);
  check_dimensions(name, {segment_ids_BS, "segment_ids_BS"}, 2);
  const int64_t E = logits_TE.size(1);
  check_count(name, "segment_ids_BS", segment_ids_BS.numel(), logits_TE.size(0));
  if (bias_E.defined()) check_sizes(name, {bias_E, "bias_E"}, {E});
  check(rule.groups >= 1 && E % rule.groups == 0, "route: groups of experts are equal");
  check(rule.kept_groups >= 1 && rule.kept_groups <= rule.groups, "route: some of the groups are kept");
  check(rule.top_k >= 1 && rule.top_k <= E / rule.groups * rule.kept_groups, "route: the kept groups have k experts");
  check(rule.group_best >= 1 && rule.group_best <= E / rule.groups, "route: a group has as many experts as count");
}

Tensor index_tensor(std::initializer_list<int64_t> sizes) { return at::empty(sizes, at::kInt); }

// Scores with all experts of the worse groups at minus infinity.
Tensor limited(const Tensor& scores_TE, const RouteRule& rule) {
  if (rule.groups == 1 || rule.kept_groups == rule.groups) return scores_TE;
  const int64_t T = scores_TE.size(0), E = scores_TE.size(1), G = rule.groups, size = E / G;
  Tensor best = index_tensor({T * G, rule.group_best}), kept = index_tensor({T, rule.kept_groups});
  Tensor value_TG = at::zeros({T, G}, scores_TE.options());
  Tensor result = at::full_like(scores_TE, -std::numeric_limits<double>::infinity());
  top_k_rows(scores_TE.view({T * G, size}), rule.group_best, elements<int32_t>(best));
  with_type(scores_TE, [&](auto zero) {
    using T_ = decltype(zero);
    const auto scores = elements<T_>(scores_TE), value = elements<T_>(value_TG), out = elements<T_>(result);
    const auto ids = elements<int32_t>(best);
    for (int64_t g = 0; g < T * G; ++g)
      for (int64_t i = 0; i < rule.group_best; ++i) value[g] += scores[g * size + ids[g * rule.group_best + i]];
    top_k_rows(value_TG, rule.kept_groups, elements<int32_t>(kept));
    const auto groups = elements<int32_t>(kept);
    for (size_t i = 0; i < groups.size(); ++i) {
      const int64_t first = static_cast<int64_t>(i) / rule.kept_groups * E + groups[i] * size;
      std::copy_n(&scores[first], size, &out[first]);
    }
  });
  return result;
}

Tensor picked(const Tensor& scores_TE, std::span<const int32_t> segments, const RouteRule& rule) {
  Tensor ids_TK = index_tensor({scores_TE.size(0), rule.top_k});
  const auto ids = elements<int32_t>(ids_TK);
  top_k_rows(limited(scores_TE, rule), rule.top_k, ids);
  for (size_t t = 0; t < segments.size(); ++t)
    if (segments[t] < 0) std::fill_n(&ids[t * rule.top_k], rule.top_k, -1);
  return ids_TK;
}

// Raw scores and weights of one token's picks.
template <typename T>
void weigh(const T* scores, std::span<const int32_t> ids, const RouteRule& rule, T* raw, T* weights) {
  const auto k = static_cast<int64_t>(ids.size());
  for (int64_t j = 0; j < k; ++j) raw[j] = scores[ids[j]];
  T sum = 0;
  if (rule.over_picks) {
    const T top = *std::max_element(raw, raw + k);
    for (int64_t j = 0; j < k; ++j) sum += (raw[j] = std::exp(raw[j] - top));
    for (int64_t j = 0; j < k; ++j) raw[j] /= sum;
    sum = 0;
  }
  for (int64_t j = 0; j < k; ++j) sum += raw[j];
  const bool divide = rule.normalise && sum > 0;
  for (int64_t j = 0; j < k; ++j) weights[j] = (divide ? raw[j] / sum : raw[j]) * static_cast<T>(rule.scale);
}

template <typename T>
void weigh_all(Routed& routed, const RouteRule& rule) {
  const Tensor& selection = rule.over_picks ? routed.logits_TE : routed.probs_TE;
  const int64_t E = selection.size(1), k = rule.top_k;
  const auto scores = elements<T>(selection), raw = elements<T>(routed.raw_TK);
  const auto weights = elements<T>(routed.weights_TK);
  const auto ids = elements<int32_t>(routed.ids_TK);
  for_rows(selection.size(0), kWork * k, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      if (ids[t * k] >= 0) weigh(&scores[t * E], ids.subspan(t * k, k), rule, &raw[t * k], &weights[t * k]);
  });
}

void count(Routed& routed, std::span<const int32_t> segments, int64_t length, int64_t k) {
  const int64_t E = routed.logits_TE.size(1);
  const auto ids = elements<int32_t>(routed.ids_TK), counted = elements<int32_t>(routed.counted_TK);
  const auto chosen = elements<int32_t>(routed.chosen_BE), first = elements<int32_t>(routed.first_BE);
  const auto selected = elements<int32_t>(routed.selected_E);
  for (int64_t t = 0; t < std::ssize(segments); ++t) {
    if (segments[t] < 0) continue;
    const int64_t row = t / length * E;
    for (int64_t j = 0; j < k; ++j) ++selected[ids[t * k + j]], ++chosen[row + counted[t * k + j]];
    ++first[row + counted[t * k]];
  }
}

// Tokens in order: the same bits on any number of threads.
template <typename T>
void add_affinities(Routed& routed, std::span<const int32_t> segments, int64_t length, bool sigmoid) {
  const int64_t E = routed.logits_TE.size(1);
  const auto probs = elements<T>(routed.probs_TE), lse = elements<T>(routed.lse_T);
  const auto affinity = elements<double>(routed.affinity_BE), sums = elements<double>(routed.sums_2);
  for (int64_t t = 0; t < std::ssize(segments); ++t) {
    if (segments[t] < 0) continue;
    const T* p_E = &probs[t * E];
    const double total = sigmoid ? std::accumulate(p_E, p_E + E, 0.0) : 1.0;
    for (int64_t e = 0; e < E; ++e) {
      const double p = total > 0 ? p_E[e] / total : 0.0;
      affinity[t / length * E + e] += p;
      if (p > 0) sums[1] -= p * std::log(p);
    }
    sums[0] += static_cast<double>(lse[t]) * lse[t];
  }
}

}  // namespace

Routed route(const Tensor& logits_TE, const Tensor& bias_E, const Tensor& segment_ids_BS, const RouteRule& rule) {
  if (on_device(logits_TE)) return route_on_device(logits_TE, bias_E, segment_ids_BS, rule);
  check_route(logits_TE, bias_E, segment_ids_BS, rule);
  const int64_t T = logits_TE.size(0), E = logits_TE.size(1), B = segment_ids_BS.size(0), S = segment_ids_BS.size(1);
  const std::span<const int32_t> segments = elements<int32_t>(segment_ids_BS);
  const auto exact = logits_TE.options().dtype(at::kDouble), index = logits_TE.options().dtype(at::kInt);
  Routed r{.logits_TE = logits_TE, .probs_TE = at::empty_like(logits_TE), .lse_T = at::empty({T}, logits_TE.options())};
  softmax_rows(logits_TE, r.probs_TE, r.lse_T);
  if (rule.sigmoid) sigmoid_rows(logits_TE, r.probs_TE);
  const Tensor& selection = rule.over_picks ? logits_TE : r.probs_TE;
  r.ids_TK = picked(bias_E.defined() ? selection + bias_E : selection, segments, rule);
  r.counted_TK = bias_E.defined() ? picked(selection, segments, rule) : r.ids_TK;
  r.raw_TK = at::zeros({T, rule.top_k}, logits_TE.options());
  r.weights_TK = at::zeros_like(r.raw_TK);
  r.chosen_BE = at::zeros({B, E}, index);
  r.first_BE = at::zeros({B, E}, index);
  r.selected_E = at::zeros({E}, index);
  r.affinity_BE = at::zeros({B, E}, exact);
  r.sums_2 = at::zeros({2}, exact);
  count(r, segments, S, rule.top_k);
  with_type(logits_TE, [&](auto zero) {
    weigh_all<decltype(zero)>(r, rule);
    add_affinities<decltype(zero)>(r, segments, S, rule.sigmoid);
  });
  return r;
}

namespace {

template <typename T>
struct TokenPicks {
  std::span<const int32_t> ids;
  const T *raw, *weights, *gradients;  // of the weights
};

// dz from the gradients of one token's weights.
template <typename T>
void through_weights(const TokenPicks<T>& picks, const RouteRule& rule, std::span<const T> probs, T* dz) {
  const auto& [ids, raw, weights, dw] = picks;
  const auto k = std::ssize(ids);
  const T scale = static_cast<T>(rule.scale);
  T sum = 0, weighted = 0, inner = 0;
  for (int64_t j = 0; j < k; ++j) sum += raw[j], weighted += dw[j] * weights[j];
  const bool divided = rule.normalise && sum > 0;
  std::vector<T> draw(k);
  for (int64_t j = 0; j < k; ++j) draw[j] = divided ? (scale * dw[j] - weighted) / sum : scale * dw[j];
  if (rule.sigmoid) {
    for (int64_t j = 0; j < k; ++j) dz[ids[j]] = draw[j] * raw[j] * (1 - raw[j]);
    return;
  }
  for (int64_t j = 0; j < k; ++j) inner += raw[j] * draw[j];
  if (!rule.over_picks)
    for (size_t e = 0; e < probs.size(); ++e) dz[e] = -probs[e] * inner;
  for (int64_t j = 0; j < k; ++j) dz[ids[j]] = raw[j] * (draw[j] - inner);
}

// Through the softmax, or through the normalised sigmoid.
template <typename T>
void through_affinity(const double* gradient_E, std::span<const T> probs, bool sigmoid, T* dz) {
  const double total = sigmoid ? std::accumulate(probs.begin(), probs.end(), 0.0) : 1.0;
  const double unit = total > 0 ? 1 / total : 0.0;  // scores that all underflowed have no affinity
  double inner = 0;
  for (size_t e = 0; e < probs.size(); ++e) inner += gradient_E[e] * probs[e] * unit;
  for (size_t e = 0; e < probs.size(); ++e) {
    const double p = probs[e], slope = sigmoid ? p * (1 - p) * unit : p;
    dz[e] += static_cast<T>(slope * (gradient_E[e] - inner));
  }
}

template <typename T>
void backward_as(const Routed& r, const Tensor& segment_ids_BS, const RouteGradients& gradients, const RouteRule& rule,
                 Tensor& dlogits_TE) {
  const int64_t E = dlogits_TE.size(1), k = rule.top_k, length = segment_ids_BS.size(1);
  const auto segments = elements<int32_t>(segment_ids_BS), ids = elements<int32_t>(r.ids_TK);
  const auto raw = elements<T>(r.raw_TK), weights = elements<T>(r.weights_TK), probs = elements<T>(r.probs_TE);
  const auto logits = elements<T>(r.logits_TE), lse = elements<T>(r.lse_T), dlogits = elements<T>(dlogits_TE);
  const T* dw = gradients.weights_TK.defined() ? elements<T>(gradients.weights_TK).data() : nullptr;
  const double* affinity = gradients.affinity_BE.defined() ? elements<double>(gradients.affinity_BE).data() : nullptr;
  for_rows(std::ssize(segments), kWork * E, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (segments[t] < 0) continue;
      T* dz = &dlogits[t * E];
      const auto p_E = std::span<const T>(probs).subspan(t * E, E);
      if (dw != nullptr)
        through_weights<T>({ids.subspan(t * k, k), &raw[t * k], &weights[t * k], dw + t * k}, rule, p_E, dz);
      if (affinity != nullptr) through_affinity<T>(affinity + t / length * E, p_E, rule.sigmoid, dz);
      for (int64_t e = 0; e < E && gradients.z_scale != 0; ++e)
        dz[e] += static_cast<T>(gradients.z_scale * lse[t] * std::exp(static_cast<double>(logits[t * E + e]) - lse[t]));
    }
  });
}

}  // namespace

Tensor route_backward(const Routed& routed, const Tensor& segment_ids_BS, const RouteGradients& gradients,
                      const RouteRule& rule) {
  if (on_device(routed.logits_TE)) return route_backward_on_device(routed, segment_ids_BS, gradients, rule);
  const char* name = "route_backward";
  const Tensor& logits = routed.logits_TE;
  const int64_t T = logits.size(0), E = logits.size(1);
  check_tensors(name, {{logits, "logits_TE"}});
  check_count(name, "segment_ids_BS", segment_ids_BS.numel(), T);
  if (gradients.weights_TK.defined()) check_sizes(name, {gradients.weights_TK, "weights_TK"}, {T, rule.top_k});
  if (gradients.affinity_BE.defined())
    check_sizes(name, {gradients.affinity_BE, "affinity_BE"}, {segment_ids_BS.size(0), E});
  Tensor dlogits = at::zeros_like(logits);
  with_type(logits, [&](auto zero) { backward_as<decltype(zero)>(routed, segment_ids_BS, gradients, rule, dlogits); });
  return dlogits;
}

}  // namespace conclave::kernels
