// SPDX-License-Identifier: Apache-2.0
// Null experts (AdaMoE, Zeng et al. 2024, arXiv 2406.13233) with a budget: beside the E true experts there are `count`
// that give nothing. A token takes the top_k best of all; its weights are the scores of the true ones divided by their
// sum, and with null ones alone the layer adds nothing. With target_k a bias on the scores of null experts, used in the
// choice alone, moves by update_rate · sign(mean true experts of a token − target_k) after each step: more of them are
// chosen when tokens use too many true ones (methods.md 7.1 has the opposite sign, which runs away). Switch losses see
// the null experts as one pool of equal load.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "moe/gate.h"
#include "moe/router.h"
#include "moe/selection.h"

namespace conclave::moe {
namespace {

constexpr const char* kBias = "null_bias";

RouterConfig over_true_ones(RouterConfig config) {
  config.score = Score::kSoftmax;
  config.score_before_topk = true;
  config.norm_topk_prob = true;
  return config;
}

RouteShape with_nulls(RouteShape shape, int64_t nulls) {
  shape.experts += nulls;
  return shape;
}

class NullExpertsRouter : public Router {
 public:
  NullExpertsRouter(const RouterConfig& config, const RouteShape& shape)
      : config_(config.null_experts.value_or(NullExpertsConfig())),
        true_ones_(shape.experts),
        gate_(over_true_ones(config)),
        selection_(over_true_ones(config), with_nulls(shape, config_.count)) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    choice.home = {.count = config_.count, .pooled = true};
    const float bias = config_.target_k ? in.state.values<float>(kBias)[0] : 0.0f;
    Tensor bias_E = at::zeros({choice.experts}, scores_TS.options());
    bias_E.narrow(0, true_ones_, config_.count).fill_(bias);
    choice.picks = selection_.best(choice.probs_TE, bias_E);
    if (config_.target_k) choice.unbiased = selection_.best(choice.probs_TE);
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override {
    choice.declined_C.assign(choice.picks.count(), 0);
    for (int64_t i = 0; i < choice.picks.count(); ++i) choice.declined_C[i] = choice.picks.ids_C[i] >= true_ones_;
    const Choice own = true_ones(choice);
    choice.weights_C = at::zeros({choice.picks.count()}, choice.logits_TE.options());
    for_each_true_pick(
        own.weights_C, choice, [](auto& weight, auto& all) { all = weight; }, choice.weights_C);
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    const Choice own = true_ones(choice);
    Tensor dweights = at::zeros_like(own.weights_C);
    for_each_true_pick(
        dweights, choice, [](auto& weight, auto& all) { weight = all; }, gradients.weights_C);
    return plus(gate_.backward(own, dweights), gradients.logits_TE);
  }

  std::vector<ScoreBlock> blocks(const RouteShape& shape) const override {
    return {{"router", shape.experts + config_.count, {}}};
  }
  int64_t home_experts() const override { return config_.count; }
  // Without a target, what even use gives.
  double planned_picks(const RouteShape& shape) const override {
    const auto E = static_cast<double>(shape.experts);
    return config_.target_k.value_or(static_cast<double>(shape.top_k) * E / (E + static_cast<double>(config_.count)));
  }
  void declare(const RouteShape&, MethodState& state) const override {
    if (config_.target_k) state.declare(kBias, at::zeros({1}));
  }
  void end_step(const StepTotals& totals, MethodState& state) const override {
    if (!config_.target_k || totals.tokens == 0) return;
    int64_t used = 0;
    for (const int64_t count : totals.selected_E) used += count;
    const double excess = static_cast<double>(used) - *config_.target_k * static_cast<double>(totals.tokens);
    const double sign = excess > 0 ? 1.0 : excess < 0 ? -1.0 : 0.0;
    state.values<float>(kBias)[0] += static_cast<float>(config_.update_rate * sign);
  }

 private:
  // The choice with its true experts alone, weighed.
  Choice true_ones(const Choice& choice) const {
    Choice own = choice;
    own.picks = {{0}, {}};
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      for (const int32_t id : choice.picks.of(t))
        if (id < true_ones_) own.picks.ids_C.push_back(id);
      own.picks.offsets_T1.push_back(static_cast<int32_t>(own.picks.ids_C.size()));
    }
    gate_.weigh(own);
    return own;
  }
  // Calls body(element of `own`, element of `all`) for the picks of true experts.
  template <typename Body>
  void for_each_true_pick(const Tensor& own, const Choice& choice, const Body& body, const Tensor& all) const {
    by_dtype(own, [&](auto zero) {
      const auto of_own = elements<decltype(zero)>(own), of_all = elements<decltype(zero)>(all);
      size_t next = 0;
      for (size_t i = 0; i < choice.picks.ids_C.size(); ++i)
        if (choice.picks.ids_C[i] < true_ones_) body(of_own[next++], of_all[i]);
    });
  }

  NullExpertsConfig config_;
  int64_t true_ones_;
  Gate gate_;
  Selection selection_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<NullExpertsRouter>(config, shape);
}

}  // namespace

Router::Row null_experts_router() {
  return {{.type = "null_experts",
           .what = "the k best of true experts and such that give nothing",
           .source = "Zeng et al. 2024, arXiv 2406.13233",
           .equation = "S = top-k(p + b on nulls), w = p / sum over true S; b += u sign(mean true - target)",
           .exports = "needs code: null experts"},
          make};
}

}  // namespace conclave::moe
