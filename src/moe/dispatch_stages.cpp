// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatch_stages.h"

namespace conclave::moe {

Dispatch::Dispatch(nn::StageSite site, const Dispatcher& dispatcher, const ExchangeSlots& slots, bool resends)
    : ExchangeStage(std::move(site)), dispatcher_(dispatcher), slots_(slots), resends_(resends) {}

void Dispatch::start_forward(nn::Frame& frame) {
  if (!slots_.planned) frame.object(slots_.plan) = dispatcher_.plan(frame.object_as<Decision>(slots_.decision).routing);
  send(frame);
}

void Dispatch::send(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.saved<Transfer>(index()) = dispatcher_.start_send(plan, frame.value(slots_.input), frame.value(slots_.weights));
}

void Dispatch::finish_forward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  Rows arrived = dispatcher_.finish_send(plan, frame.saved<Transfer>(index()));
  frame.forget(index());
  frame.value(slots_.rows) = arrived.rows;
  frame.value(slots_.gates) = arrived.scalars;
}

void Dispatch::start_backward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.saved<Transfer>(index()) = dispatcher_.start_give_back(plan, frame.grad(slots_.rows), frame.grad(slots_.gates));
}

void Dispatch::finish_backward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  Rows home = dispatcher_.finish_give_back(plan, frame.saved<Transfer>(index()));
  frame.forget(index());
  frame.add_grad(slots_.input, home.rows);
  frame.add_grad(slots_.weights, home.scalars);
}

ExpertStage::ExpertStage(nn::StageSite site, Experts experts, const ExchangeSlots& slots, bool adds)
    : Stage(std::move(site)), experts_(std::move(experts)), slots_(slots), adds_(adds) {}

Rows ExpertStage::arrived(nn::Frame& frame) const { return {frame.value(slots_.rows), frame.value(slots_.gates)}; }

void ExpertStage::forward(nn::Frame& frame) {
  auto& saved = frame.saved<Experts::Saved>(index());
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  const Rows rows = arrived(frame);
  Tensor results = plan.empty_results(rows.rows);
  experts_.forward({plan.segments, frame.link()}, rows, saved, results);
  frame.value(slots_.results) = results;
  if (!frame.training()) frame.forget(index());
}

void ExpertStage::forward_again(nn::Frame& frame) {
  const auto& segments = frame.object_as<DispatchPlan>(slots_.plan).segments;
  experts_.pre_activations({segments, frame.link()}, arrived(frame), frame.saved<Experts::Saved>(index()));
}

void ExpertStage::backward_input(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  const Rows rows = arrived(frame);
  Tensor drows = plan.empty_results(rows.rows);
  const Tensor dgates = experts_.backward_input({plan.segments, frame.link()}, rows, frame.grad(slots_.results),
                                                frame.saved<Experts::Saved>(index()), drows);
  frame.add_grad(slots_.rows, drows);
  frame.add_grad(slots_.gates, dgates);
}

void ExpertStage::backward_weight(nn::Frame& frame) {
  const auto& segments = frame.object_as<DispatchPlan>(slots_.plan).segments;
  nn::Gradients gradients = frame.gradients();
  gradients.fresh &= !adds_;
  experts_.backward_weight({segments, frame.link()}, arrived(frame), frame.saved<Experts::Saved>(index()), gradients);
  frame.forget(index());
}

Combine::Combine(nn::StageSite site, const Dispatcher& dispatcher, const ExchangeSlots& slots)
    : ExchangeStage(std::move(site)), dispatcher_(dispatcher), slots_(slots) {}

void Combine::start_forward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.saved<Transfer>(index()) = dispatcher_.start_give_back(plan, frame.value(slots_.results), {});
}

void Combine::finish_forward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.value(slots_.output) = dispatcher_.finish_give_back(plan, frame.saved<Transfer>(index())).rows;
  frame.forget(index());
  frame.value(slots_.results) = Tensor();  // backward needs none of it
}

void Combine::start_backward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.saved<Transfer>(index()) = dispatcher_.start_send(plan, frame.grad(slots_.output), {});
}

void Combine::finish_backward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.add_grad(slots_.results, dispatcher_.finish_send(plan, frame.saved<Transfer>(index())).rows);
  frame.forget(index());
}

}  // namespace conclave::moe
