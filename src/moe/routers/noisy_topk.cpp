// SPDX-License-Identifier: Apache-2.0
// Noisy top-k gating (Shazeer et al. 2017, arXiv 1701.06538): c = x·Wg, σ = softplus(x·Wn) + ε, h = c + σ·N(0, 1) in
// training, h = c else; the k largest h are chosen, and their softmax are the weights. Gradients flow through σ, too.
// Both matrices start at zero, so that noise alone chooses first. Losses importance and load go with it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>

#include "kernels/softmax.h"
#include "moe/gate.h"
#include "moe/router.h"
#include "moe/selection.h"

namespace conclave::moe {
namespace {

RouterConfig over_chosen(RouterConfig config) {
  config.score = Score::kSoftmax;
  config.score_before_topk = false;
  return config;
}

class NoisyTopKRouter : public Router {
 public:
  NoisyTopKRouter(const RouterConfig& config, const RouteShape& shape)
      : gate_(over_chosen(config)),
        selection_(config, shape),
        epsilon_(config.noisy_topk.value_or(NoisyTopKConfig()).epsilon) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    const int64_t E = scores_TS.size(1) / 2;
    const Tensor clean = scores_TS.narrow(1, 0, E).contiguous();
    Tensor deviation, drawn;
    if (in.moment.training) deviation = deviation_of(scores_TS), drawn = noise(clean, in);
    Choice choice = gate_.scored(drawn.defined() ? clean + deviation * drawn : clean);
    choice.scores_TS = scores_TS;
    choice.clean_TE = clean;
    choice.deviation_TE = deviation;
    choice.noise_TE = drawn;
    selection_.choose(choice, choice.logits_TE, in.state);
    gate_.weigh(choice);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override { gate_.weigh(choice); }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override;

  std::vector<ScoreBlock> blocks(const RouteShape& shape) const override {
    return {{"router", shape.experts, 0.0}, {"router.noise", shape.experts, 0.0}};
  }

 private:
  // softplus of the second half, plus epsilon; by scalars, since vector and remainder differ in bits.
  Tensor deviation_of(const Tensor& scores_TS) const {
    Tensor result = scores_TS.narrow(1, scores_TS.size(1) / 2, scores_TS.size(1) / 2).contiguous();
    by_dtype(result, [&](auto zero) {
      using T = decltype(zero);
      for (T& x : elements<T>(result))
        x = std::max(x, T{0}) + std::log1p(std::exp(-std::abs(x))) + static_cast<T>(epsilon_);
    });
    return result;
  }
  // Standard normal, by global token and expert.
  static Tensor noise(const Tensor& like_TE, const RouteInput& in) {
    const Random random = in.moment.random(Purpose::kRouterNoise);
    Tensor result = at::empty_like(like_TE);
    const int64_t E = like_TE.size(1);
    by_dtype(result, [&](auto zero) {
      using T = decltype(zero);
      const auto out = elements<T>(result);
      for (int64_t t = 0; t < like_TE.size(0); ++t)
        for (int64_t e = 0; e < E; ++e)
          out[t * E + e] = static_cast<T>(random.normal(in.batch.global_token_ids[t] * E + e));
    });
    return result;
  }

  Gate gate_;
  Selection selection_;
  double epsilon_;
};

Tensor NoisyTopKRouter::backward(const Choice& choice, const ChoiceGradients& gradients) const {
  const Tensor dlogits = plus(gate_.backward(choice, gradients.weights_C), gradients.logits_TE);
  Tensor ddeviation = dlogits * choice.noise_TE;
  if (gradients.deviation_TE.defined()) ddeviation = ddeviation + gradients.deviation_TE;
  const int64_t E = dlogits.size(1);
  Tensor slope = at::empty_like(dlogits);  // of softplus
  kernels::sigmoid_rows(choice.scores_TS.narrow(1, E, E).contiguous(), slope);
  return at::cat({plus(dlogits, gradients.clean_TE), ddeviation * slope}, 1);
}

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<NoisyTopKRouter>(config, shape);
}

}  // namespace

Router::Row noisy_topk_router() {
  return {{.type = "noisy_topk",
           .what = "the k best logits after learned noise",
           .source = "Shazeer et al. 2017, arXiv 1701.06538",
           .equation = "h = x Wg + softplus(x Wn) N(0,1), w = softmax over top-k(h)",
           .evaluation = "without noise",
           .exports = "needs code: noise matrix (training only)"},
          make};
}

}  // namespace conclave::moe
