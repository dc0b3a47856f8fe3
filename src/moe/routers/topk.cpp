// SPDX-License-Identifier: Apache-2.0
// Top-k routing: the k largest scores (plus a bias) are chosen, ties to the lower id. Serves Switch (k = 1, not
// renormalised), GShard's and DBRX's renormalised softmax, Mixtral's softmax over the chosen logits (the same function,
// Jiang et al. 2024), DeepSeekMoE (not renormalised), DeepSeek-V2's and -V3's groups.
//
// second: random (GShard, arXiv 2006.16668): in training a second expert is sent to with probability
// min(1, w2 / threshold), w2 its weight; the first one's weight does not change when it is not.
//
// DeepSpeed (arXiv 2201.05596) draws in training, by Gumbel noise on the logits, and weighs without it: noise: gumbel
// (RSample, k = 1) draws the expert from softmax(z); second: gumbel (k = 2) draws the second one from the softmax over
// all but the first. An evaluation takes the largest.
#include <ATen/TensorOperators.h>

#include "moe/gate.h"
#include "moe/gumbel.h"
#include "moe/router.h"
#include "moe/selection.h"

namespace conclave::moe {
namespace {

class TopKRouter : public Router {
 public:
  TopKRouter(const RouterConfig& config, const RouteShape& shape)
      : gate_(config),
        selection_(config, shape),
        sampled_(config.noise == "gumbel"),
        sampled_second_(config.second == "gumbel"),
        random_second_(config.second == "random"),
        threshold_(config.second_threshold * config.routed_scaling_factor) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    selection_.choose(choice, gate_.selection(choice), in.state);
    if (in.moment.training) sample(choice, in);
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput& in) const override {
    gate_.weigh(choice);
    if (random_second_ && in.moment.training) decline_seconds(choice, in);
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    return plus(gate_.backward(choice, gradients.weights_C), gradients.logits_TE);
  }
  bool backward_reads_logits() const override { return false; }

 private:
  void sample(Choice& choice, const RouteInput& in) const {
    if (sampled_) choice.picks.ids_C = gumbel_draws(choice.logits_TE, in, Purpose::kRouterSample);
    if (!sampled_second_) return;
    std::vector<int32_t> firsts(choice.tokens());
    for (size_t t = 0; t < firsts.size(); ++t) firsts[t] = choice.picks.ids_C[2 * t];
    const auto seconds = gumbel_draws(choice.logits_TE, in, Purpose::kRouterSecond, firsts);
    for (size_t t = 0; t < firsts.size(); ++t) choice.picks.ids_C[2 * t + 1] = seconds[t];
  }
  void decline_seconds(Choice& choice, const RouteInput& in) const {
    const Random random = in.moment.random(Purpose::kRouterSecond);
    choice.declined_C.assign(choice.picks.count(), 0);
    by_dtype(choice.weights_C, [&](auto zero) {
      const auto weights = elements<decltype(zero)>(choice.weights_C);
      for (int64_t t = 0; t < choice.tokens(); ++t) {
        const int32_t second = choice.picks.offsets_T1[t] + 1;
        choice.declined_C[second] = random.uniform(in.batch.global_token_ids[t]) * threshold_ >= weights[second];
      }
    });
  }

  Gate gate_;
  Selection selection_;
  bool sampled_, sampled_second_, random_second_;
  double threshold_;  // of weights, which are scaled
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<TopKRouter>(config, shape);
}

}  // namespace

Router::Row topk_router() {
  return {{.type = "topk",
           .what = "the k best scores",
           .source = "Shazeer et al. 2017, arXiv 1701.06538, and most since",
           .equation = "S = top-k(s + b), w_e = r s_e, or r s_e / sum over S",
           .exports = "Mixtral, Qwen-MoE, OLMoE, DeepSeek"},
          make};
}

}  // namespace conclave::moe
