// SPDX-License-Identifier: Apache-2.0
// ReMoE (Wang et al. 2024, arXiv 2412.14711): weights are ReLU(x·W), and a token goes to every expert whose weight is
// not zero, any number of them. `top_k` is what the l1 loss steers the mean to. No softmax and no renormalisation; a
// token without experts passes by the layer.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "moe/gate.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

class ReluRouter : public Router {
 public:
  explicit ReluRouter(const RouterConfig& config) : scale_(config.routed_scaling_factor) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice;
    choice.logits_TE = scores_TS;
    choice.experts = scores_TS.size(1);
    choice.affinity = Affinity::kNone;
    by_dtype(scores_TS, [&](auto zero) {
      using T = decltype(zero);
      const std::span<const T> logits = elements<T>(scores_TS);
      choice.picks = picks_where(logits, choice.experts, [&](size_t i) { return logits[i] > 0; });
    });
    weigh(choice, in);
    return choice;
  }

  // The logits themselves, not their positive part: where picks are taken over from another run, a logit next to zero
  // counts with what it is.
  void weigh(Choice& choice, const RouteInput&) const override {
    choice.weights_C = at::empty({choice.picks.count()}, choice.logits_TE.options());
    for_each_pick(choice, choice.weights_C, choice.logits_TE,
                  [this](auto& weight, auto& logit) { weight = logit * scale_; });
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    Tensor dlogits = at::zeros_like(choice.logits_TE);
    for_each_pick(choice, gradients.weights_C, dlogits,
                  [this](auto& dweight, auto& dlogit) { dlogit = dweight * scale_; });
    return plus(dlogits, gradients.logits_TE);
  }

 private:
  template <typename Body>
  static void for_each_pick(const Choice& choice, const Tensor& values_C, const Tensor& values_TE, const Body& body) {
    by_dtype(values_C, [&](auto zero) {
      using T = decltype(zero);
      const auto by_pick = elements<T>(values_C), by_expert = elements<T>(values_TE);
      for (int64_t t = 0; t < choice.tokens(); ++t)
        for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
          body(by_pick[i], by_expert[t * choice.experts + choice.picks.ids_C[i]]);
    });
  }
  double scale_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape&) {
  return std::make_unique<ReluRouter>(config);
}

}  // namespace

Router::Row relu_router() {
  return {.info = {.type = "relu",
                   .what = "every expert with a positive logit",
                   .source = "Wang et al. 2024, arXiv 2412.14711",
                   .equation = "w = ReLU(x W), S = {e: w_e > 0}",
                   .exports = "needs code: ReLU gate"},
          .make = make,
          .many_picks = true};
}

}  // namespace conclave::moe
