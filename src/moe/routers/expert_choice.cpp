// SPDX-License-Identifier: Apache-2.0
// Expert choice (Zhou et al. 2022, arXiv 2202.09368): every expert takes the C tokens of the micro-batch whose softmax
// score for it is largest, C = k·T/E; a token gets any number of experts, k on average, with its scores as weights.
// Whether it is taken depends on later tokens, so an evaluation admits by the mean threshold of training instead, token
// by token; before the first step it takes the k best.
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/softmax.h"
#include "moe/gate.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

RouterConfig softmax_scores(RouterConfig config) {
  config.score = Score::kSoftmax;
  config.score_before_topk = true;
  config.norm_topk_prob = false;
  return config;
}

class ExpertChoiceRouter : public Router {
 public:
  ExpertChoiceRouter(const RouterConfig& config, const RouteShape& shape)
      : config_(config.expert_choice.value_or(ExpertChoiceConfig())), gate_(softmax_scores(config)), k_(shape.top_k) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    by_dtype(scores_TS, [&](auto zero) {
      const std::span<const decltype(zero)> probs = elements<decltype(zero)>(choice.probs_TE);
      in.moment.training ? take<decltype(zero)>(choice, probs, in) : admit<decltype(zero)>(choice, probs, in);
    });
    gate_.weigh(choice);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override { gate_.weigh(choice); }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    return plus(gate_.backward(choice, gradients.weights_C), gradients.logits_TE);
  }
  void declare(const RouteShape& shape, MethodState& state) const override {
    state.declare("threshold", at::zeros({shape.experts}));
    state.declare("threshold_steps", at::zeros({1}, at::kLong));
  }
  void end_step(const StepTotals& totals, MethodState& state) const override;

 private:
  template <typename T>
  void take(Choice& choice, std::span<const T> probs, const RouteInput& in) const;
  template <typename T>
  void admit(Choice& choice, std::span<const T> probs, const RouteInput& in) const;

  ExpertChoiceConfig config_;
  Gate gate_;
  int64_t k_;
};

template <typename T>
void ExpertChoiceRouter::take(Choice& choice, std::span<const T> probs, const RouteInput& in) const {
  const int64_t E = choice.experts;
  std::vector<int32_t> real;
  for (int64_t t = 0; t < in.batch.tokens_count(); ++t)
    if (in.batch.segment_ids[t] >= 0) real.push_back(static_cast<int32_t>(t));
  const auto tokens = static_cast<double>(real.size());
  const double wanted = static_cast<double>(k_) * tokens / static_cast<double>(E);
  const int64_t capacity = std::min<int64_t>(std::ssize(real), std::llround(std::ceil(wanted * (1 - 1e-12))));
  std::vector<uint8_t> mask(in.batch.tokens_count() * E, 0);
  for (int64_t e = 0; e < E; ++e) {
    std::vector<int32_t> order = real;
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return probs[a * E + e] > probs[b * E + e]; });
    for (int64_t i = 0; i < capacity; ++i) mask[order[i] * E + e] = 1;
    // Who takes all tokens has no threshold.
    const bool some = capacity > 0 && capacity < std::ssize(real);
    choice.sums.push_back(some ? static_cast<double>(probs[order[capacity - 1] * E + e]) : 0.0);
  }
  choice.sums.push_back(capacity > 0 ? 1.0 : 0.0);  // micro-batches that have a threshold
  choice.picks = picks_where(probs, E, [&](size_t i) { return mask[i] != 0; });
}

template <typename T>
void ExpertChoiceRouter::admit(Choice& choice, std::span<const T> probs, const RouteInput& in) const {
  if (in.state.values<int64_t>("threshold_steps")[0] == 0) {
    std::vector<int32_t> ids(choice.probs_TE.size(0) * k_);
    kernels::top_k_rows(choice.probs_TE, k_, ids);
    choice.picks = even_picks(std::move(ids), choice.probs_TE.size(0));
    return;
  }
  const auto threshold = in.state.values<float>("threshold");
  const auto E = static_cast<size_t>(choice.experts);
  choice.picks =
      picks_where(probs, choice.experts, [&](size_t i) { return probs[i] >= static_cast<T>(threshold[i % E]); });
}

void ExpertChoiceRouter::end_step(const StepTotals& totals, MethodState& state) const {
  const auto threshold = state.values<float>("threshold");
  int64_t& steps = state.values<int64_t>("threshold_steps")[0];
  const double batches = totals.sums.empty() ? 0 : totals.sums.back();
  if (batches == 0) return;
  for (size_t e = 0; e < threshold.size(); ++e) {
    const double mean = totals.sums[e] / batches, kept = steps == 0 ? 0 : config_.threshold_decay;
    threshold[e] = static_cast<float>(kept * threshold[e] + (1 - kept) * mean);
  }
  ++steps;
}

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<ExpertChoiceRouter>(config, shape);
}

}  // namespace

Router::Row expert_choice_router() {
  return {{.type = "expert_choice",
           .what = "every expert takes its best tokens",
           .source = "Zhou et al. 2022, arXiv 2202.09368",
           .equation = "tokens of e = top-C over t of softmax(z)_te, C = k T / E, w = softmax(z)",
           .causality = Causality::kLeaky,
           .evaluation = "tokens above the mean threshold of training",
           .exports = "not exportable: depends on the batch"},
          make};
}

}  // namespace conclave::moe
