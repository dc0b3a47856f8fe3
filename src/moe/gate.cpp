// SPDX-License-Identifier: Apache-2.0
#include "moe/gate.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/softmax.h"

namespace conclave::moe {
namespace {

constexpr int64_t kGrain = 64;  // tokens

}  // namespace

Choice Gate::scored(const Tensor& logits_TE) const {
  Choice choice;
  choice.logits_TE = logits_TE;
  choice.experts = logits_TE.size(1);
  choice.probs_TE = at::empty_like(logits_TE);
  choice.lse_T = at::empty({logits_TE.size(0)}, logits_TE.options());
  kernels::softmax_rows(logits_TE, choice.probs_TE, choice.lse_T);
  if (score_ == Score::kSigmoid) {
    kernels::sigmoid_rows(logits_TE, choice.probs_TE);
    choice.affinity = Affinity::kNormalised;
  }
  return choice;
}

void Gate::weigh(Choice& choice) const {
  choice.raw_C = at::empty({choice.picks.count()}, choice.logits_TE.options());
  choice.weights_C = at::empty_like(choice.raw_C);
  by_dtype(choice.logits_TE, [&](auto zero) { weigh_as<decltype(zero)>(choice); });
}

template <typename T>
void Gate::weigh_as(Choice& choice) const {
  const int64_t E = choice.experts;
  const auto scores = elements<T>(selection(choice));
  const auto raw = elements<T>(choice.raw_C), weights = elements<T>(choice.weights_C);
  const T scale = static_cast<T>(scale_);
  at::parallel_for(0, choice.tokens(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto ids = choice.picks.of(t);
      const auto k = static_cast<int64_t>(ids.size());
      if (k == 0) continue;
      T* s = &raw[choice.picks.offsets_T1[t]];
      T* w = &weights[choice.picks.offsets_T1[t]];
      for (int64_t j = 0; j < k; ++j) s[j] = scores[t * E + ids[j]];
      T sum = 0;
      if (over_picks_) {
        const T top = *std::max_element(s, s + k);
        for (int64_t j = 0; j < k; ++j) sum += (s[j] = std::exp(s[j] - top));
        for (int64_t j = 0; j < k; ++j) s[j] /= sum;
        sum = 0;
      }
      for (int64_t j = 0; j < k; ++j) sum += s[j];
      const bool divide = normalise_ && sum > 0;
      for (int64_t j = 0; j < k; ++j) w[j] = (divide ? s[j] / sum : s[j]) * scale;
    }
  });
}

Tensor Gate::backward(const Choice& choice, const Tensor& dweights_C) const {
  Tensor dlogits = at::zeros_like(choice.probs_TE);
  by_dtype(dlogits, [&](auto zero) { differentiate<decltype(zero)>(choice, dweights_C, dlogits); });
  return dlogits;
}

template <typename T>
void Gate::differentiate(const Choice& choice, const Tensor& dweights_C, Tensor& dlogits_TE) const {
  const int64_t E = choice.experts;
  const auto dw_C = elements<T>(dweights_C), raw = elements<T>(choice.raw_C), w_C = elements<T>(choice.weights_C);
  const auto probs = elements<T>(choice.probs_TE), dz = elements<T>(dlogits_TE);
  const T scale = static_cast<T>(scale_);
  at::parallel_for(0, choice.tokens(), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> ds;  // gradient of the raw scores
    for (int64_t t = begin; t < end; ++t) {
      const auto ids = choice.picks.of(t);
      const auto k = static_cast<int64_t>(ids.size());
      if (k == 0) continue;
      const int64_t first = choice.picks.offsets_T1[t];
      const T *s = &raw[first], *dw = &dw_C[first], *w = &w_C[first];
      T sum = 0, weighted = 0;
      for (int64_t j = 0; j < k; ++j) sum += s[j], weighted += dw[j] * w[j];
      const bool divided = normalise_ && sum > 0;
      ds.resize(k);
      for (int64_t j = 0; j < k; ++j) ds[j] = divided ? (scale * dw[j] - weighted) / sum : scale * dw[j];
      T* out = &dz[t * E];
      if (score_ == Score::kSigmoid) {
        for (int64_t j = 0; j < k; ++j) out[ids[j]] = ds[j] * s[j] * (1 - s[j]);
        continue;
      }
      T inner = 0;
      for (int64_t j = 0; j < k; ++j) inner += s[j] * ds[j];
      if (!over_picks_) {
        for (int64_t e = 0; e < E; ++e) out[e] = -probs[t * E + e] * inner;
      }
      for (int64_t j = 0; j < k; ++j) out[ids[j]] = s[j] * (ds[j] - inner);
    }
  });
}

Tensor plus(Tensor gradient, const Tensor& more) {
  if (!gradient.defined()) return more;
  return more.defined() ? gradient.add_(more) : gradient;
}

}  // namespace conclave::moe
