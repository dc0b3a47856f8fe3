// SPDX-License-Identifier: Apache-2.0
#include "moe/route_stage.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

#include "moe/fallback_stage.h"
#include "moe/renormalize.h"
#include "nn/token_exchange.h"

namespace conclave::moe {
namespace {

// Rows of padding become zero.
void clear_padding(Tensor& rows, TokenRange tokens, const Batch& batch) {
  for (int64_t t = 0; t < tokens.count; ++t)
    if (batch.segment_ids[tokens.first + t] < 0) rows[t].zero_();
}

}  // namespace

RouteStage::RouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config,
                       const ModelState& state)
    : Stage(std::move(site)),
      config_(config.moe),
      shape_(config.shape),
      observer_(config.observer),
      tp_(config.tp),
      adds_(config.adds),
      scorer_(parameters, config.blocks, config_.router.jitter),
      forms_(forms_of(config)),
      training_(Admission::make(config_.capacity, true)),
      evaluation_(Admission::make(config_.capacity, false)),
      balancer_(config_.balance),
      relative_widths_(relative_widths(config_)),
      state_(state) {
  if (config.context) context_.emplace(parameters, *config.context);
}

std::vector<nn::Slot> RouteStage::outputs() const {
  std::vector<nn::Slot> slots{slots_.weights, slots_.decision};
  if (slots_.home) slots.push_back(*slots_.home);
  if (slots_.lost) slots.push_back(*slots_.lost);
  if (slots_.stand_ins) slots.push_back(*slots_.stand_ins);
  return slots;
}

std::vector<nn::ParameterId> RouteStage::parameters() const {
  auto ids = scorer_.parameters();
  if (context_) ids.push_back(context_->rates());
  return ids;
}

std::vector<RouteStage::Form> RouteStage::forms_of(const RouteConfig& config) {
  std::vector<Form> forms;
  const MoeConfig& moe = config.moe;
  for (const TopKPhase& phase : moe.top_k.phases()) {
    RouteShape shape = config.shape;
    if (moe.top_k.scheduled()) shape.top_k = phase.k * moe.granularity;
    forms.push_back(
        {phase.until.value_or(std::numeric_limits<int64_t>::max()), shape, Router::make(moe.router, shape)});
  }
  return forms;
}

const RouteStage::Form& RouteStage::form(int64_t step) const {
  return *std::find_if(forms_.begin(), forms_.end() - 1, [&](const Form& form) { return step < form.until; });
}

Moment RouteStage::moment(const nn::Frame& frame) const {
  return {.seed = shape_.seed, .step = frame.step(), .layer = slots_.layer, .training = frame.training()};
}

TokenRange RouteStage::own_tokens(int64_t all) const {
  const int64_t own = all / tp_.size();
  return {own * tp_.rank(), own};
}

ScorerInput RouteStage::scorer_input(nn::Frame& frame) const {
  Tensor x = frame.value(slots_.input);
  const TokenRange own = own_tokens(frame.batch().tokens_count());
  if (context_) {
    const Tensor& context = frame.saved<Saved>(index()).context_TD;
    x = at::cat({x, context.narrow(0, own.first, own.count)}, 1);
  }
  return {x, std::span(frame.batch().global_token_ids).subspan(own.first, own.count), moment(frame)};
}

void RouteStage::make_context(nn::Frame& frame) const {
  if (!context_) return;
  const Tensor& own = frame.value(slots_.input);
  const Tensor all = tp_.size() > 1 ? nn::move_tokens(nn::TokenMove::kGather, own, tp_) : own;
  frame.saved<Saved>(index()).context_TD = context_->forward(all, frame.batch());
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
  form(in.moment.step).router->weigh(choice, in);
  choice.declined_C = std::move(ids.declined_C);
}

std::vector<uint8_t> RouteStage::admitted(Decision& decision, const RouteInput& in) const {
  Choice& choice = decision.choice;
  std::vector<uint8_t> keep(choice.picks.count());
  int64_t tokens = 0;
  for (int64_t t = 0; t < in.batch.tokens_count(); ++t) {
    const bool real = in.batch.segment_ids[t] >= 0;
    tokens += real;
    std::fill(keep.begin() + choice.picks.offsets_T1[t], keep.begin() + choice.picks.offsets_T1[t + 1], real);
  }
  for (size_t i = 0; i < choice.declined_C.size(); ++i) keep[i] = keep[i] && !choice.declined_C[i];
  const bool training = in.moment.training;
  const auto& [until, shape, router] = form(in.moment.step);
  const auto capacity = expert_capacity(config_.capacity, training, tokens, shape.top_k, router->even_experts(shape));
  const auto asked = keep;
  decision.routing.dropped = capacity ? (training ? training_ : evaluation_)->admit(choice, in, *capacity, keep) : 0;
  if (choice.asked) router->weigh(choice, in);
  if (slots_.lost) decision.lost_C = lost_picks(choice.picks, asked, keep, own_tokens(choice.tokens()));
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

void RouteStage::settle(Decision& decision, std::span<const uint8_t> keep, const RouteInput& in) const {
  const Choice& choice = decision.choice;
  const int64_t dropped = decision.routing.dropped;
  decision.routing = make_routing(choice.picks, keep, {0, choice.tokens()}, shape_.experts);
  decision.routing.dropped = dropped;
  decision.statistics = gather_statistics(choice, decision.routing, in.batch, form(in.moment.step).shape.top_k);
  if (tp_.size() == 1) return;
  const TokenRange own = own_tokens(choice.tokens());
  decision.first_token = own.first;
  decision.routing = make_routing(choice.picks, keep, own, shape_.experts);
}

void RouteStage::set_home(nn::Frame& frame, const Decision& decision) const {
  if (slots_.lost) frame.value(*slots_.lost) = lost_weights(decision);
  if (slots_.stand_ins) frame.value(*slots_.stand_ins) = at::empty({0}, decision.choice.weights_C.options());
  if (!slots_.home) return;
  const TokenRange own{decision.first_token, decision.routing.tokens};
  Tensor home = decision.choice.home_TV.narrow(0, own.first, own.count).clone();
  clear_padding(home, own, frame.batch());
  frame.value(*slots_.home) = home;
}

void RouteStage::forward(nn::Frame& frame) {
  make_context(frame);
  Tensor scores = scorer_.forward(scorer_input(frame));
  if (tp_.size() > 1 && scores.defined()) scores = nn::move_tokens(nn::TokenMove::kGather, scores, tp_);
  const RouteInput in = route_input(frame);
  Decision decision;
  decision.choice = form(in.moment.step).router->route(scores, in);
  observe(decision.choice, in);
  const auto keep = admitted(decision, in);
  settle(decision, keep, in);
  frame.value(slots_.weights) = pair_weights(decision, frame.training());
  set_home(frame, decision);
  // With many narrow experts they are a large part of what a layer keeps.
  if (frame.training() && !balancer_.reads_logits() && !form(in.moment.step).router->backward_reads_logits())
    decision.choice.scores_TS = decision.choice.logits_TE = Tensor();
  frame.object(slots_.decision) = std::move(decision);
  if (!frame.training()) frame.forget(index());
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

ChoiceGradients RouteStage::choice_gradients(nn::Frame& frame, const Decision& decision) const {
  ChoiceGradients gradients{.weights_C = weights_gradient(frame.grad(slots_.weights), decision)};
  if (slots_.lost) add_lost_gradient(decision, frame.grad(*slots_.lost), gradients.weights_C);
  if (slots_.stand_ins) {
    gradients.stand_ins_TE = at::zeros_like(decision.choice.probs_TE);
    gradients.stand_ins_TE.narrow(0, decision.first_token, decision.routing.tokens)
        .copy_(frame.grad(*slots_.stand_ins));
  }
  if (!slots_.home) return gradients;
  gradients.home_TV = at::zeros_like(decision.choice.home_TV);
  gradients.home_TV.narrow(0, decision.first_token, decision.routing.tokens).copy_(frame.grad(*slots_.home));
  clear_padding(gradients.home_TV, {0, frame.batch().tokens_count()}, frame.batch());
  return gradients;
}

Tensor RouteStage::input_gradient(nn::Frame& frame, const Tensor& dscores_TS) const {
  const auto& decision = frame.object_as<Decision>(slots_.decision);
  auto& saved = frame.saved<Saved>(index());
  const auto own = [&](const Tensor& rows) { return rows.narrow(0, decision.first_token, decision.routing.tokens); };
  saved.dscores_TS = own(dscores_TS);
  if (!context_) return scorer_.backward_input(saved.dscores_TS, scorer_input(frame));
  // Contexts of later tokens read this rank's, whoever has those tokens: each rank knows the gradients of its own
  // alone.
  const Tensor all_scores =
      tp_.size() > 1 ? nn::move_tokens(nn::TokenMove::kGather, saved.dscores_TS.contiguous(), tp_) : dscores_TS;
  const Tensor all = scorer_.backward_input(all_scores, scorer_input(frame));
  const int64_t D = all.size(1) / 2;
  saved.dcontext_TD = context_->through_time(all.narrow(1, D, D).contiguous(), frame.batch());
  return own(all.narrow(1, 0, D)) + context_->backward_input(own(saved.dcontext_TD));
}

void RouteStage::backward_input(nn::Frame& frame) {
  auto& decision = frame.object_as<Decision>(slots_.decision);
  ChoiceGradients gradients = choice_gradients(frame, decision);
  std::vector<const Decision*> layers;
  for (const nn::Slot slot : slots_.all_decisions) layers.push_back(&frame.object_as<Decision>(slot));
  balancer_.add_gradient({layers, state_, frame.batch(), relative_widths_}, slots_.layer, gradients);
  const Tensor dscores = form(frame.step()).router->backward(decision.choice, gradients);
  if (dscores.defined()) frame.add_grad(slots_.input, input_gradient(frame, dscores));
}

void RouteStage::backward_weight(nn::Frame& frame) {
  const Saved& saved = frame.saved<Saved>(index());
  nn::Gradients gradients = frame.gradients();
  gradients.fresh &= !adds_;
  if (saved.dscores_TS.defined()) scorer_.backward_weight(saved.dscores_TS, scorer_input(frame), gradients);
  if (context_ && saved.dcontext_TD.defined()) {
    const auto& decision = frame.object_as<Decision>(slots_.decision);
    context_->backward_weight({frame.value(slots_.input), saved.context_TD, saved.dcontext_TD, decision.first_token},
                              frame.batch(), gradients);
  }
  frame.forget(index());
}

}  // namespace conclave::moe
