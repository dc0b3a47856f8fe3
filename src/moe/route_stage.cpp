// SPDX-License-Identifier: Apache-2.0
#include "moe/route_stage.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "moe/renormalize.h"
#include "nn/token_exchange.h"

namespace conclave::moe {

RouteStage::RouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config,
                       const ModelState& state)
    : Stage(std::move(site)),
      config_(config.moe),
      shape_(config.shape),
      observer_(config.observer),
      tp_(config.tp),
      adds_(config.adds),
      scorer_(parameters, config.blocks, config_.router.jitter),
      router_(Router::make(config_.router, shape_)),
      training_(Admission::make(config_.capacity, true)),
      evaluation_(Admission::make(config_.capacity, false)),
      balancer_(config_.balance),
      state_(state) {}

Moment RouteStage::moment(const nn::Frame& frame) const {
  return {.seed = shape_.seed, .step = frame.step(), .layer = slots_.layer, .training = frame.training()};
}

TokenRange RouteStage::own_tokens(int64_t all) const {
  const int64_t own = all / tp_.size();
  return {own * tp_.rank(), own};
}

ScorerInput RouteStage::scorer_input(nn::Frame& frame) const {
  const Tensor& x = frame.value(slots_.input);
  const TokenRange own = own_tokens(frame.batch().tokens_count());
  return {x, std::span(frame.batch().global_token_ids).subspan(own.first, own.count), moment(frame)};
}

RouteInput RouteStage::route_input(nn::Frame& frame) const {
  return {frame.batch(), state_.layers[slots_.layer], moment(frame), frame.value(slots_.input).scalar_type()};
}

void RouteStage::observe(Choice& choice, const RouteInput& in) const {
  if (observer_ == nullptr || !in.moment.training) return;
  ExpertIds ids{choice.picks, choice.counted(), choice.declined_C};
  if (!observer_->chosen(in.batch, slots_.layer, ids)) return;
  choice.picks = std::move(ids.selected);
  choice.unbiased = std::move(ids.unbiased);
  router_->weigh(choice, in);
  choice.declined_C = std::move(ids.declined_C);
}

std::vector<uint8_t> RouteStage::admitted(Choice& choice, const RouteInput& in, int64_t& dropped) const {
  std::vector<uint8_t> keep(choice.picks.count());
  int64_t tokens = 0;
  for (int64_t t = 0; t < in.batch.tokens_count(); ++t) {
    const bool real = in.batch.segment_ids[t] >= 0;
    tokens += real;
    std::fill(keep.begin() + choice.picks.offsets_T1[t], keep.begin() + choice.picks.offsets_T1[t + 1], real);
  }
  for (size_t i = 0; i < choice.declined_C.size(); ++i) keep[i] = keep[i] && !choice.declined_C[i];
  const bool training = in.moment.training;
  const auto capacity = expert_capacity(config_.capacity, training, tokens, shape_.top_k, choice.experts);
  dropped = capacity ? (training ? training_ : evaluation_)->admit(choice, in, *capacity, keep) : 0;
  if (choice.asked) router_->weigh(choice, in);
  return keep;
}

Tensor RouteStage::pair_weights(const Decision& decision, bool training) const {
  const Routing& routing = decision.routing;
  Tensor pairs = at::empty({routing.pairs()}, decision.choice.weights_C.options());
  by_dtype(pairs, [&](auto zero) {
    using T = decltype(zero);
    const std::span<const T> weights = elements<T>(decision.choice.weights_C);
    const auto out = elements<T>(pairs);
    for (int64_t n = 0; n < routing.pairs(); ++n) out[n] = weights[routing.picks_N[n]];
    if (renormalizes(training)) Survivors{routing, config_.router.routed_scaling_factor}.normalize<T>(weights, out);
  });
  return pairs;
}

void RouteStage::settle(Decision& decision, std::span<const uint8_t> keep, const Batch& batch) const {
  const Choice& choice = decision.choice;
  const int64_t dropped = decision.routing.dropped;
  decision.routing = make_routing(choice.picks, keep, {0, choice.tokens()}, choice.experts);
  decision.routing.dropped = dropped;
  decision.statistics = gather_statistics(choice, decision.routing, batch, shape_.top_k);
  if (tp_.size() == 1) return;
  const TokenRange own = own_tokens(choice.tokens());
  decision.first_token = own.first;
  decision.routing = make_routing(choice.picks, keep, own, choice.experts);
}

void RouteStage::forward(nn::Frame& frame) {
  Tensor scores = scorer_.forward(scorer_input(frame));
  if (tp_.size() > 1 && scores.defined()) scores = nn::move_tokens(nn::TokenMove::kGather, scores, tp_);
  const RouteInput in = route_input(frame);
  Decision decision;
  decision.choice = router_->route(scores, in);
  observe(decision.choice, in);
  const auto keep = admitted(decision.choice, in, decision.routing.dropped);
  settle(decision, keep, frame.batch());
  frame.value(slots_.weights) = pair_weights(decision, frame.training());
  frame.object(slots_.decision) = std::move(decision);
}

Tensor RouteStage::weights_gradient(const Tensor& dweights_N, const Decision& decision) const {
  const Routing& routing = decision.routing;
  Tensor dweights = at::zeros_like(decision.choice.weights_C);
  by_dtype(dweights, [&](auto zero) {
    using T = decltype(zero);
    const std::span<const T> in = elements<T>(dweights_N), weights = elements<T>(decision.choice.weights_C);
    const auto out = elements<T>(dweights);
    if (renormalizes(true)) {
      Survivors{routing, config_.router.routed_scaling_factor}.differentiate<T>(weights, in, out);
      return;
    }
    for (int64_t n = 0; n < routing.pairs(); ++n) out[routing.picks_N[n]] = in[n];
  });
  return dweights;
}

void RouteStage::backward_input(nn::Frame& frame) {
  auto& decision = frame.object_as<Decision>(slots_.decision);
  ChoiceGradients gradients{.weights_C = weights_gradient(frame.grad(slots_.weights), decision)};
  std::vector<const Decision*> layers;
  for (const nn::Slot slot : slots_.all_decisions) layers.push_back(&frame.object_as<Decision>(slot));
  balancer_.add_gradient({layers, state_, frame.batch()}, slots_.layer, gradients);
  Tensor dscores = router_->backward(decision.choice, gradients);
  if (!dscores.defined()) return;
  dscores = dscores.narrow(0, decision.first_token, decision.routing.tokens);
  frame.add_grad(slots_.input, scorer_.backward_input(dscores, scorer_input(frame)));
  frame.saved<Tensor>(index()) = dscores;
}

void RouteStage::backward_weight(nn::Frame& frame) {
  const Tensor& dscores = frame.saved<Tensor>(index());
  nn::Gradients gradients = frame.gradients();
  gradients.fresh &= !adds_;
  if (dscores.defined()) scorer_.backward_weight(dscores, scorer_input(frame), gradients);
  frame.forget(index());
}

}  // namespace conclave::moe
