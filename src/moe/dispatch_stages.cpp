// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatch_stages.h"

namespace conclave::moe {

Dispatch::Dispatch(nn::StageSite site, const Dispatcher& dispatcher, const ExchangeSlots& slots, bool resends)
    : ExchangeStage(std::move(site)), dispatcher_(dispatcher), slots_(slots), resends_(resends) {}

void Dispatch::start_forward(nn::Frame& frame) {
  if (!slots_.planned) frame.object(slots_.plan) = dispatcher_.plan(frame.object_as<Decision>(slots_.decision).routing);
  send(frame);
  send_tokens(frame);
}

void Dispatch::send(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.saved<UnderWay>(index()).rows =
      dispatcher_.start_send(plan, frame.value(slots_.input), frame.value(slots_.weights));
}

void Dispatch::send_tokens(nn::Frame& frame) {
  if (!slots_.tokens || !frame.training()) return;
  const auto& decision = frame.object_as<Decision>(slots_.decision);
  const auto own = std::span(frame.batch().global_token_ids).subspan(decision.first_token, decision.routing.tokens);
  frame.saved<UnderWay>(index()).tokens = dispatcher_.start_send(
      frame.object_as<DispatchPlan>(slots_.plan), token_digits(own, frame.value(slots_.input).options()), {});
}

void Dispatch::finish_forward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  auto& under_way = frame.saved<UnderWay>(index());
  const Rows arrived = dispatcher_.finish_send(plan, under_way.rows);
  if (under_way.tokens) frame.object(*slots_.tokens) = tokens_of(dispatcher_.finish_send(plan, *under_way.tokens).rows);
  frame.forget(index());
  frame.value(slots_.rows) = arrived.rows;
  frame.value(slots_.gates) = arrived.scalars;
}

void Dispatch::start_backward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  frame.saved<UnderWay>(index()).rows =
      dispatcher_.start_give_back(plan, frame.grad(slots_.rows), frame.grad(slots_.gates));
}

void Dispatch::finish_backward(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  Rows home = dispatcher_.finish_give_back(plan, frame.saved<UnderWay>(index()).rows);
  frame.forget(index());
  frame.add_grad(slots_.input, home.rows);
  frame.add_grad(slots_.weights, home.scalars);
}

ExpertStage::ExpertStage(nn::StageSite site, Experts experts, const ExchangeSlots& slots, bool adds)
    : Stage(std::move(site)), experts_(std::move(experts)), slots_(slots), adds_(adds) {}

Rows ExpertStage::arrived(nn::Frame& frame) const { return {frame.value(slots_.rows), frame.value(slots_.gates)}; }

Segments ExpertStage::segments(nn::Frame& frame) const {
  Segments segments{frame.object_as<DispatchPlan>(slots_.plan).segments, frame.link()};
  if (!experts_.has_dropout() || !frame.training()) return segments;
  segments.tokens_R = frame.object_as<std::vector<int64_t>>(*slots_.tokens);
  segments.step = frame.step();
  return segments;
}

std::vector<nn::Slot> ExpertStage::outputs() const {
  std::vector<nn::Slot> slots{slots_.results};
  if (slots_.bare) slots.push_back(*slots_.bare);
  return slots;
}

void ExpertStage::forward(nn::Frame& frame) {
  auto& saved = frame.saved<Experts::Saved>(index());
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  const Rows rows = arrived(frame);
  Tensor results = plan.empty_results(rows.rows);
  experts_.forward(segments(frame), rows, saved, results);
  frame.value(slots_.results) = results;
  if (slots_.bare && frame.training()) {
    Tensor bare = plan.empty_results(rows.rows);
    experts_.outputs(segments(frame), saved, bare);
    frame.value(*slots_.bare) = bare;
  }
  if (slots_.outputs && frame.training()) {
    // Chunks of a layer share them.
    if (!frame.object(*slots_.outputs).has_value()) frame.object(*slots_.outputs) = OutputSums();
    experts_.add_outputs(segments(frame), saved, frame.object_as<OutputSums>(*slots_.outputs));
  }
  if (!frame.training()) frame.forget(index());
}

void ExpertStage::forward_again(nn::Frame& frame) {
  experts_.pre_activations(segments(frame), arrived(frame), frame.saved<Experts::Saved>(index()));
}

void ExpertStage::backward_input(nn::Frame& frame) {
  const auto& plan = frame.object_as<DispatchPlan>(slots_.plan);
  const Rows rows = arrived(frame);
  Tensor drows = plan.empty_results(rows.rows);
  const Tensor dgates = experts_.backward_input(segments(frame), rows, frame.grad(slots_.results),
                                                frame.saved<Experts::Saved>(index()), drows);
  frame.add_grad(slots_.rows, drows);
  frame.add_grad(slots_.gates, dgates);
}

void ExpertStage::backward_weight(nn::Frame& frame) {
  nn::Gradients gradients = frame.gradients();
  gradients.fresh &= !adds_;
  experts_.backward_weight(segments(frame), arrived(frame), frame.saved<Experts::Saved>(index()), gradients);
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
