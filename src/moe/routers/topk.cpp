// SPDX-License-Identifier: Apache-2.0
// Top-k routing: scores s = softmax(z) or sigmoid(z); the k largest s + bias are chosen, ties to the lower id; weights
// are the scores themselves, or divided by their sum over the chosen, times a factor r. Serves Switch (k = 1, not
// renormalised), GShard's and DBRX's renormalised softmax, Mixtral's softmax over the chosen logits (the same function,
// Jiang et al. 2024), DeepSeekMoE (not renormalised) and DeepSeek-V3's sigmoid scores. Gradients: the table of
// methods.md 0.2.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/softmax.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

constexpr int64_t kGrain = 64;  // tokens

class TopKRouter : public Router {
 public:
  TopKRouter(const RouterConfig& config, int64_t top_k) : config_(config), k_(top_k) {}
  Choice route(const Tensor& logits_TE, const Tensor& bias_E) const override;
  void weigh(Choice& choice) const override;
  Tensor backward(const Tensor& dweights_TK, const Choice& choice) const override;

 private:
  bool softmax_over_chosen() const { return config_.score == Score::kSoftmax && !config_.score_before_topk; }
  template <typename T>
  void weigh_as(Choice& choice) const;
  template <typename T>
  void differentiate(const Tensor& dweights_TK, const Choice& choice, Tensor& dlogits_TE) const;

  RouterConfig config_;
  int64_t k_;
};

Choice TopKRouter::route(const Tensor& logits_TE, const Tensor& bias_E) const {
  const int64_t T = logits_TE.size(0);
  Choice choice;
  choice.top_k = k_;
  choice.logits_TE = logits_TE;
  choice.probs_TE = at::empty_like(logits_TE);
  choice.lse_T = at::empty({T}, logits_TE.options());
  kernels::softmax_rows(logits_TE, choice.probs_TE, choice.lse_T);
  if (config_.score == Score::kSigmoid) kernels::sigmoid_rows(logits_TE, choice.probs_TE);
  const Tensor& scores = softmax_over_chosen() ? logits_TE : choice.probs_TE;
  choice.ids_TK.resize(T * k_);
  kernels::top_k_rows(bias_E.defined() ? scores + bias_E : scores, k_, choice.ids_TK);
  choice.raw_TK = at::empty({T, k_}, logits_TE.options());
  choice.weights_TK = at::empty({T, k_}, logits_TE.options());
  weigh(choice);
  return choice;
}

void TopKRouter::weigh(Choice& choice) const {
  by_dtype(choice.logits_TE, [&](auto zero) { weigh_as<decltype(zero)>(choice); });
}

template <typename T>
void TopKRouter::weigh_as(Choice& choice) const {
  const int64_t E = choice.logits_TE.size(1);
  const auto scores = elements<T>(softmax_over_chosen() ? choice.logits_TE : choice.probs_TE);
  const auto raw = elements<T>(choice.raw_TK), weights = elements<T>(choice.weights_TK);
  const T scale = static_cast<T>(config_.routed_scaling_factor);
  at::parallel_for(0, choice.logits_TE.size(0), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      T* s = &raw[t * k_];
      for (int64_t j = 0; j < k_; ++j) s[j] = scores[t * E + choice.ids_TK[t * k_ + j]];
      T sum = 0;
      if (softmax_over_chosen()) {
        const T top = *std::max_element(s, s + k_);
        for (int64_t j = 0; j < k_; ++j) sum += (s[j] = std::exp(s[j] - top));
        for (int64_t j = 0; j < k_; ++j) s[j] /= sum;
        sum = 0;
      }
      for (int64_t j = 0; j < k_; ++j) sum += s[j];
      const bool divide = config_.norm_topk_prob && sum > 0;
      for (int64_t j = 0; j < k_; ++j) weights[t * k_ + j] = (divide ? s[j] / sum : s[j]) * scale;
    }
  });
}

Tensor TopKRouter::backward(const Tensor& dweights_TK, const Choice& choice) const {
  Tensor dlogits = at::zeros_like(choice.logits_TE);
  by_dtype(dlogits, [&](auto zero) { differentiate<decltype(zero)>(dweights_TK, choice, dlogits); });
  return dlogits;
}

template <typename T>
void TopKRouter::differentiate(const Tensor& dweights_TK, const Choice& choice, Tensor& dlogits_TE) const {
  const int64_t E = choice.logits_TE.size(1);
  const auto dw = elements<T>(dweights_TK), raw = elements<T>(choice.raw_TK), w = elements<T>(choice.weights_TK);
  const auto probs = elements<T>(choice.probs_TE), dz = elements<T>(dlogits_TE);
  const T scale = static_cast<T>(config_.routed_scaling_factor);
  at::parallel_for(0, dlogits_TE.size(0), kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> ds(k_);  // gradient of the raw scores
    for (int64_t t = begin; t < end; ++t) {
      const T* s = &raw[t * k_];
      T sum = 0, weighted = 0;
      for (int64_t j = 0; j < k_; ++j) sum += s[j], weighted += dw[t * k_ + j] * w[t * k_ + j];
      const bool divided = config_.norm_topk_prob && sum > 0;
      for (int64_t j = 0; j < k_; ++j) {
        ds[j] = divided ? (scale * dw[t * k_ + j] - weighted) / sum : scale * dw[t * k_ + j];
      }
      T* out = &dz[t * E];
      const int32_t* ids = &choice.ids_TK[t * k_];
      if (config_.score == Score::kSigmoid) {
        for (int64_t j = 0; j < k_; ++j) out[ids[j]] = ds[j] * s[j] * (1 - s[j]);
        continue;
      }
      T inner = 0;
      for (int64_t j = 0; j < k_; ++j) inner += s[j] * ds[j];
      if (!softmax_over_chosen()) {
        for (int64_t e = 0; e < E; ++e) out[e] = -probs[t * E + e] * inner;
      }
      for (int64_t j = 0; j < k_; ++j) out[ids[j]] = s[j] * (ds[j] - inner);
    }
  });
}

std::unique_ptr<Router> make(const RouterConfig& config, int64_t top_k) {
  return std::make_unique<TopKRouter>(config, top_k);
}

}  // namespace

Router::Row topk_router() { return {"topk", make}; }

}  // namespace conclave::moe
