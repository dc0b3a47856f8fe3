// SPDX-License-Identifier: Apache-2.0
#include "moe/device_route.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "kernels/bf16.h"
#include "nn/linear.h"

namespace conclave::moe {

kernels::RouteRule route_rule(const RouterConfig& config, const RouteShape& shape) {
  const bool sigmoid = config.score == Score::kSigmoid;
  const bool top2 = config.group_score == GroupScore::kTop2 || (config.group_score == GroupScore::kAuto && sigmoid);
  return {.top_k = shape.top_k,
          .sigmoid = sigmoid,
          .over_picks = !sigmoid && !config.score_before_topk,
          .normalise = config.norm_topk_prob,
          .scale = config.routed_scaling_factor,
          .groups = config.n_group,
          .kept_groups = config.topk_group,
          .group_best = top2 ? std::min<int64_t>(2, shape.experts / config.n_group) : 1};
}

Tensor packed_statistics(const kernels::Routed& routed) {
  std::vector<Tensor> parts;
  for (const Tensor& part : {routed.chosen_BE, routed.first_BE, routed.selected_E, routed.affinity_BE, routed.sums_2})
    parts.push_back(part.to(at::kDouble).flatten());
  return at::cat(parts);
}

RouterStatistics unpacked_statistics(std::span<const double> packed, const std::vector<int64_t>& tokens_B,
                                     const std::vector<double>& targets_B, const RouteShape& shape) {
  const auto B = std::ssize(tokens_B), E = shape.experts;
  check(std::ssize(packed) == 3 * B * E + E + 2, "statistics are unpacked as they were packed");
  const double* next = packed.data();
  const auto take = [&](auto& values, int64_t count) {
    values.assign(next, next + count);
    next += count;
  };
  RouterStatistics s;
  s.experts = E;
  s.sequences = B;
  s.top_k = shape.top_k;
  s.tokens_B = tokens_B;
  s.targets_B = targets_B;
  take(s.chosen_BE, B * E);
  take(s.first_BE, B * E);
  take(s.selected_E, E);
  take(s.affinity_BE, B * E);
  s.dispatched_E = s.selected_E;
  s.lse_squared = next[0];
  s.entropy = next[1];
  return s;
}

DeviceRouteStage::DeviceRouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config,
                                   const DeviceState& state)
    : Stage(std::move(site)),
      parameters_(parameters),
      weight_(config.blocks.at(0)),
      rule_(route_rule(config.moe.router, config.shape)),
      balance_(config.moe.balance, config.shape.top_k),
      router_(Router::make(config.moe.router, config.shape)),
      state_(state) {}

void DeviceRouteStage::forward(nn::Frame& frame) {
  const Tensor x = kernels::wide(frame.value(slots_.input));
  const Tensor logits = nn::linear_forward(x, parameters_.value(weight_)), bias = state_.get(slots_.layer, "bias");
  DeviceDecision decision;
  decision.routed = kernels::route(logits, bias.defined() ? bias.to(logits.scalar_type()) : bias,
                                   frame.device()->batch.segment_ids_BS, rule_);
  decision.slots = kernels::slot_map(decision.routed.ids_TK, decision.routed.selected_E);
  frame.value(slots_.weights) = decision.routed.weights_TK;
  frame.object(slots_.decision) = std::move(decision);
}

void DeviceRouteStage::backward_input(nn::Frame& frame) {
  const auto& batch = frame.device()->batch;
  std::vector<const kernels::Routed*> layers;
  for (const nn::Slot slot : slots_.all_decisions) layers.push_back(&frame.object_as<DeviceDecision>(slot).routed);
  kernels::RouteGradients gradients{.weights_TK = frame.grad(slots_.weights)};
  balance_.add_gradient({layers, state_, batch}, slots_.layer, gradients);
  const Tensor dlogits = kernels::route_backward(*layers[slots_.layer], batch.segment_ids_BS, gradients, rule_);
  const Tensor dx = nn::linear_backward_input(dlogits, parameters_.value(weight_));
  frame.add_grad(slots_.input, dx.to(frame.value(slots_.input).scalar_type()));
  frame.saved<Tensor>(index()) = dlogits;
}

void DeviceRouteStage::backward_weight(nn::Frame& frame) {
  nn::linear_backward_weight(frame.saved<Tensor>(index()), kernels::wide(frame.value(slots_.input)),
                             frame.gradients().fresh, frame.gradients().view(parameters_[weight_]));
  frame.forget(index());
}

}  // namespace conclave::moe
