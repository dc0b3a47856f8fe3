// SPDX-License-Identifier: Apache-2.0
#include "moe/device_exchange_stages.h"

#include <ATen/ops/empty.h>

#include "moe/device_rows.h"

namespace conclave::moe {
namespace {

const DevicePlan& plan_of(nn::Frame& frame, const DeviceExchangeSlots& slots) {
  return frame.object_as<DevicePlan>(slots.plan);
}

const kernels::SlotMap& map_of(nn::Frame& frame, const DeviceExchangeSlots& slots) {
  return frame.object_as<DeviceDecision>(slots.decision).slots;
}

// Each token's rows, which lie sorted by expert, added up.
Tensor sum_by_token(const Tensor& rows_ND, const Tensor& slots_TK) {
  Tensor y_TD = at::empty({slots_TK.size(0), rows_ND.size(1)}, rows_ND.options());
  kernels::aggregate(rows_ND, slots_TK, y_TD);
  return y_TD;
}

}  // namespace

DeviceDispatch::DeviceDispatch(nn::StageSite site, const comm::Group& ep, const DeviceExchangeSlots& slots,
                               bool resends)
    : ExchangeStage(std::move(site)), exchange_(ep), slots_(slots), resends_(resends) {}

// All rows, also those of padding at their end, which stay: how many there are is not known yet.
void DeviceDispatch::gather(nn::Frame& frame) {
  auto& own = frame.saved<UnderWay>(index());
  const kernels::SlotMap& map = map_of(frame, slots_);
  own.rows = gathered(frame.value(slots_.input), map.rows_N);
  own.gates = gathered(frame.value(slots_.weights).view({-1}), map.picks_N);
}

void DeviceDispatch::send(nn::Frame& frame) {
  auto& own = frame.saved<UnderWay>(index());
  const DevicePlan& plan = plan_of(frame, slots_);
  own.of_rows = exchange_.start_out(plan, own.rows);
  own.of_gates = exchange_.start_out(plan, own.gates);
}

// The device gathers while the counts travel and the host waits for them.
void DeviceDispatch::start_forward(nn::Frame& frame) {
  auto counts = exchange_.start_counts(frame.object_as<DeviceDecision>(slots_.decision).routed.selected_E);
  gather(frame);
  frame.object(slots_.plan) = exchange_.plan(counts, *frame.device()->reads);
  send(frame);
}

void DeviceDispatch::start_again(nn::Frame& frame) {
  gather(frame);
  send(frame);
}

void DeviceDispatch::finish_forward(nn::Frame& frame) {
  auto& own = frame.saved<UnderWay>(index());
  const DevicePlan& plan = plan_of(frame, slots_);
  frame.value(slots_.rows) = exchange_.finish_out(plan, own.of_rows);
  frame.value(slots_.gates) = exchange_.finish_out(plan, own.of_gates);
  frame.forget(index());
}

void DeviceDispatch::start_backward(nn::Frame& frame) {
  auto& own = frame.saved<UnderWay>(index());
  const DevicePlan& plan = plan_of(frame, slots_);
  own.of_rows = exchange_.start_home(plan, frame.grad(slots_.rows));
  own.of_gates = exchange_.start_home(plan, frame.grad(slots_.gates));
}

void DeviceDispatch::finish_backward(nn::Frame& frame) {
  auto& own = frame.saved<UnderWay>(index());
  const Tensor& slots_TK = map_of(frame, slots_).slots_TK;
  const Tensor drows = exchange_.finish_home(own.of_rows), dgates = exchange_.finish_home(own.of_gates);
  frame.forget(index());
  frame.add_grad(slots_.input, sum_by_token(drows, slots_TK));
  frame.add_grad(slots_.weights, gathered(dgates, slots_TK).view(slots_TK.sizes()));
}

DeviceRankExperts::DeviceRankExperts(nn::StageSite site, const nn::Parameters& parameters,
                                     const std::vector<ExpertWeights>& experts, const DeviceExchangeSlots& slots)
    : Stage(std::move(site)), experts_(parameters, experts), slots_(slots) {}

kernels::RowGroups DeviceRankExperts::groups(nn::Frame& frame) const {
  const DevicePlan& plan = plan_of(frame, slots_);
  return {plan.order.ends_E, *frame.device()->reads, plan.host_ends_E};
}

void DeviceRankExperts::forward_again(nn::Frame& frame) {
  experts_.pre_activations(frame.value(slots_.rows), groups(frame), frame.saved<DeviceExperts::Saved>(index()));
}

void DeviceRankExperts::forward(nn::Frame& frame) {
  forward_again(frame);
  const auto& saved = frame.saved<DeviceExperts::Saved>(index());
  frame.value(slots_.results) = experts_.results(frame.value(slots_.gates), groups(frame), saved);
  if (!frame.training()) frame.forget(index());
}

void DeviceRankExperts::backward_input(nn::Frame& frame) {
  auto& saved = frame.saved<DeviceExperts::Saved>(index());
  const auto gradients =
      experts_.backward_input(frame.grad(slots_.results), frame.value(slots_.gates), groups(frame), saved);
  frame.add_grad(slots_.rows, gradients.x_ND);
  frame.add_grad(slots_.gates, gradients.gates_N);
}

void DeviceRankExperts::backward_weight(nn::Frame& frame) {
  experts_.backward_weight(frame.value(slots_.rows), groups(frame), frame.saved<DeviceExperts::Saved>(index()),
                           frame.gradients());
  frame.forget(index());
}

DeviceCombine::DeviceCombine(nn::StageSite site, const comm::Group& ep, const DeviceExchangeSlots& slots)
    : ExchangeStage(std::move(site)), exchange_(ep), slots_(slots) {}

void DeviceCombine::start_forward(nn::Frame& frame) {
  frame.saved<DeviceTransfer>(index()) = exchange_.start_home(plan_of(frame, slots_), frame.value(slots_.results));
}

void DeviceCombine::finish_forward(nn::Frame& frame) {
  const Tensor rows = exchange_.finish_home(frame.saved<DeviceTransfer>(index()));
  frame.forget(index());
  frame.value(slots_.output) = sum_by_token(rows, map_of(frame, slots_).slots_TK);
  frame.value(slots_.results) = Tensor();  // backward needs none of it
}

void DeviceCombine::start_backward(nn::Frame& frame) {
  const Tensor dy = gathered(frame.grad(slots_.output), map_of(frame, slots_).rows_N);
  frame.saved<DeviceTransfer>(index()) = exchange_.start_out(plan_of(frame, slots_), dy);
}

void DeviceCombine::finish_backward(nn::Frame& frame) {
  auto& transfer = frame.saved<DeviceTransfer>(index());
  frame.add_grad(slots_.results, exchange_.finish_out(plan_of(frame, slots_), transfer));
  frame.forget(index());
}

}  // namespace conclave::moe
