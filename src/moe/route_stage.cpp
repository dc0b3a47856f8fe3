// SPDX-License-Identifier: Apache-2.0
#include "moe/route_stage.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/softmax.h"
#include "nn/linear.h"
#include "nn/token_exchange.h"

namespace conclave::moe {
namespace {

// Weights of one token's surviving pairs divided by their sum, times r (DeepSpeed's order: normalise after the drop).
struct Survivors {
  const Routing& routing;
  int64_t top_k;
  double scale;

  template <typename T>
  T sum(int64_t t, std::span<const T> weights_TK) const {
    T sum = 0;
    for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1]; ++i) {
      sum += weights_TK[t * top_k + routing.choices_N[routing.token_rows_N[i]]];
    }
    return sum;
  }
  template <typename T>
  void normalize(std::span<const T> weights_TK, std::span<T> pairs_N) const {
    for (int64_t t = 0; t < routing.tokens; ++t) {
      const T total = sum(t, weights_TK);
      for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1] && total > 0; ++i) {
        pairs_N[routing.token_rows_N[i]] *= static_cast<T>(scale) / total;
      }
    }
  }
  // w' = r w / Σw over survivors, so dw = (r dw' − Σ dw' w') / Σw.
  template <typename T>
  void differentiate(std::span<const T> weights_TK, std::span<const T> dpairs_N, std::span<T> dchoice_TK) const {
    const T r = static_cast<T>(scale);
    for (int64_t t = 0; t < routing.tokens; ++t) {
      const T total = sum(t, weights_TK);
      if (total <= 0) continue;
      T inner = 0;
      for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1]; ++i) {
        const int32_t n = routing.token_rows_N[i];
        inner += dpairs_N[n] * r * weights_TK[t * top_k + routing.choices_N[n]] / total;
      }
      for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1]; ++i) {
        const int32_t n = routing.token_rows_N[i];
        dchoice_TK[t * top_k + routing.choices_N[n]] = (r * dpairs_N[n] - inner) / total;
      }
    }
  }
};

// Of values of all pairs of the micro-batch, those of this rank's tokens.
template <typename T>
std::span<T> own_pairs(const Decision& decision, std::span<T> all_TK) {
  return all_TK.subspan(decision.first_token * decision.choice.top_k, decision.routing.tokens * decision.choice.top_k);
}

Tensor gathered(const Tensor& x, const comm::Group& tp) {
  return tp.size() == 1 ? x : nn::move_tokens(nn::TokenMove::kGather, x, tp);
}

}  // namespace

RouteStage::RouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config,
                       const std::vector<BalanceState>& states)
    : Stage(std::move(site)),
      parameters_(parameters),
      weight_(config.weight_ED),
      config_(config.moe),
      top_k_(config.top_k),
      observer_(config.observer),
      tp_(config.tp),
      router_(Router::make(config_.router, top_k_)),
      balancer_(config_.balance, config_.router.score),
      states_(states) {}

// The ids without bias. Those of `choice` and these are another's where the observer says so.
std::vector<int32_t> RouteStage::unbiased_ids(Choice& choice, const nn::Frame& frame) const {
  std::vector<int32_t> unbiased = choice.ids_TK;
  if (states_[slots_.layer].bias_E.defined()) kernels::top_k_rows(choice.probs_TE, top_k_, unbiased);
  if (observer_ == nullptr || !frame.training()) return unbiased;
  ExpertIds ids{choice.ids_TK, std::move(unbiased)};
  if (observer_->chosen(frame.batch(), slots_.layer, ids)) {
    choice.ids_TK = std::move(ids.selected_TK);
    router_->weigh(choice);
  }
  return std::move(ids.unbiased_TK);
}

std::vector<uint8_t> RouteStage::admitted(const Choice& choice, const nn::Frame& frame, int64_t& dropped) const {
  const Batch& batch = frame.batch();
  std::vector<uint8_t> keep(choice.ids_TK.size());
  int64_t tokens = 0;
  for (int64_t t = 0; t < batch.tokens_count(); ++t) {
    const bool real = batch.segment_ids[t] >= 0;
    tokens += real;
    std::fill_n(keep.begin() + t * top_k_, top_k_, real);
  }
  const auto capacity = expert_capacity(config_.capacity, frame.training(), tokens, top_k_, choice.logits_TE.size(1));
  // An evaluation must not let a token be pushed out by a later one.
  const auto policy = frame.training() ? config_.capacity.policy : DropPolicy::kPosition;
  dropped = capacity ? drop_over_capacity(choice, policy, *capacity, keep) : 0;
  return keep;
}

Tensor RouteStage::pair_weights(const Decision& decision) const {
  const Routing& routing = decision.routing;
  Tensor pairs = at::empty({routing.pairs()}, decision.choice.weights_TK.options());
  by_dtype(pairs, [&](auto zero) {
    using T = decltype(zero);
    const auto weights = own_pairs(decision, elements<T>(decision.choice.weights_TK)), out = elements<T>(pairs);
    for (int64_t n = 0; n < routing.pairs(); ++n) out[n] = weights[routing.rows_N[n] * top_k_ + routing.choices_N[n]];
    if (renormalizes())
      Survivors{routing, top_k_, config_.router.routed_scaling_factor}.template normalize<T>(weights, out);
  });
  return pairs;
}

void RouteStage::settle(Decision& decision, std::span<const int32_t> unbiased, std::span<const uint8_t> keep,
                        const nn::Frame& frame) const {
  const auto& ids = decision.choice.ids_TK;
  const int64_t tokens = decision.choice.logits_TE.size(0), experts = decision.choice.logits_TE.size(1);
  const int64_t dropped = decision.routing.dropped;
  decision.routing = make_routing(ids, keep, tokens, experts);
  decision.routing.dropped = dropped;
  decision.statistics =
      gather_statistics(decision.choice, unbiased, decision.routing, frame.batch(), config_.router.score);
  if (tp_.size() == 1) return;
  const int64_t own = tokens / tp_.size();
  decision.first_token = own * tp_.rank();
  const auto pairs = [&](auto all) { return all.subspan(decision.first_token * top_k_, own * top_k_); };
  decision.routing = make_routing(pairs(std::span<const int32_t>(ids)), pairs(keep), own, experts);
}

void RouteStage::forward(nn::Frame& frame) {
  const Tensor logits = gathered(nn::linear_forward(frame.value(slots_.input), parameters_.value(weight_)), tp_);
  Decision decision;
  decision.choice = router_->route(logits, states_[slots_.layer].bias_E);
  const std::vector<int32_t> unbiased = unbiased_ids(decision.choice, frame);
  const auto keep = admitted(decision.choice, frame, decision.routing.dropped);
  settle(decision, unbiased, keep, frame);
  frame.value(slots_.weights) = pair_weights(decision);
  frame.object(slots_.decision) = std::move(decision);
}

Tensor RouteStage::choice_gradient(const Tensor& dweights_N, const Decision& decision) const {
  const Routing& routing = decision.routing;
  Tensor dchoice = at::zeros_like(decision.choice.weights_TK);
  by_dtype(dchoice, [&](auto zero) {
    using T = decltype(zero);
    const auto in = elements<T>(dweights_N), out = own_pairs(decision, elements<T>(dchoice));
    if (renormalizes()) {
      Survivors{routing, top_k_, config_.router.routed_scaling_factor}.template differentiate<T>(
          own_pairs(decision, elements<T>(decision.choice.weights_TK)), in, out);
      return;
    }
    for (int64_t n = 0; n < routing.pairs(); ++n) out[routing.rows_N[n] * top_k_ + routing.choices_N[n]] = in[n];
  });
  return dchoice;
}

void RouteStage::backward_input(nn::Frame& frame) {
  auto& decision = frame.object_as<Decision>(slots_.decision);
  Tensor dlogits = router_->backward(choice_gradient(frame.grad(slots_.weights), decision), decision.choice);
  std::vector<const RouterStatistics*> layers;
  for (const nn::Slot slot : slots_.all_decisions) layers.push_back(&frame.object_as<Decision>(slot).statistics);
  balancer_.add_logit_gradient({layers, states_}, slots_.layer, decision.choice, frame.batch(), dlogits);
  dlogits = dlogits.narrow(0, decision.first_token, decision.routing.tokens);
  frame.add_grad(slots_.input, nn::linear_backward_input(dlogits, parameters_.value(weight_)));
  frame.saved<Tensor>(index()) = dlogits;
}

void RouteStage::backward_weight(nn::Frame& frame) {
  auto& gradients = frame.gradients();
  nn::linear_backward_weight(frame.saved<Tensor>(index()), frame.value(slots_.input), gradients.fresh,
                             gradients.view(parameters_[weight_]));
  frame.forget(index());
}

}  // namespace conclave::moe
