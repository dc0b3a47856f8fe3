// SPDX-License-Identifier: Apache-2.0
#include "moe/device_experts.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "kernels/swiglu.h"
#include "moe/device_rows.h"

namespace conclave::moe {

DeviceExperts::DeviceExperts(const nn::Parameters& parameters, const std::vector<ExpertWeights>& experts)
    : parameters_(parameters) {
  for (const auto& expert : experts) {
    gate_up_.push_back(expert.gate_up_2FD);
    down_.push_back(expert.down_DF);
  }
}

std::vector<nn::ParameterId> DeviceExperts::parameters() const {
  std::vector<nn::ParameterId> ids = gate_up_;
  ids.insert(ids.end(), down_.begin(), down_.end());
  return ids;
}

void DeviceExperts::pre_activations(const Tensor& x_ND, const kernels::RowGroups& groups, Saved& saved) const {
  const Tensor weights = parameters_.stacked_value(gate_up_);
  saved.h_N2F = at::empty({x_ND.size(0), weights.size(1)}, x_ND.options());
  kernels::grouped_forward(x_ND, weights, groups, saved.h_N2F);
}

Tensor DeviceExperts::results(const Tensor& gates_N, const kernels::RowGroups& groups, const Saved& saved) const {
  const Tensor weights = parameters_.stacked_value(down_);
  const int64_t N = saved.h_N2F.size(0), F = weights.size(2);
  Tensor act_NF = at::empty({N, F}, saved.h_N2F.options()), y_ND = at::empty({N, weights.size(1)}, act_NF.options());
  kernels::swiglu(saved.h_N2F, gates_N, act_NF);
  kernels::grouped_forward(act_NF, weights, groups, y_ND);
  return y_ND;
}

DeviceExperts::RowGradients DeviceExperts::backward_input(const Tensor& dy_ND, const Tensor& gates_N,
                                                          const kernels::RowGroups& groups, Saved& saved) const {
  saved.dy_ND = dy_ND;
  Tensor dact = at::empty({saved.h_N2F.size(0), saved.h_N2F.size(1) / 2}, saved.h_N2F.options());
  kernels::grouped_backward_input(dy_ND, parameters_.stacked_value(down_), groups, dact);
  kernels::SwigluGradients inner{at::empty_like(saved.h_N2F), at::empty_like(gates_N), at::empty_like(dact)};
  kernels::swiglu_backward(dact, saved.h_N2F, gates_N, inner);
  saved.dh_N2F = inner.dh_N2F;
  saved.act_NF = inner.out_NF;
  Tensor dx_ND = at::empty_like(dy_ND);
  kernels::grouped_backward_input(saved.dh_N2F, parameters_.stacked_value(gate_up_), groups, dx_ND);
  return {dx_ND, inner.dscale_N};
}

void DeviceExperts::backward_weight(const Tensor& x_ND, const kernels::RowGroups& groups, const Saved& saved,
                                    nn::Gradients& gradients) const {
  check(gradients.experts.size() == 1, "a device sums gradients of all sources in one buffer");
  const auto add = [&](const Tensor& dy, const Tensor& x, const std::vector<nn::ParameterId>& ids) {
    Tensor dw = nn::stacked_view(gradients.experts[0], parameters_, ids);
    kernels::grouped_backward_weight(dy, x, groups, gradients.fresh, dw);
  };
  add(saved.dy_ND, saved.act_NF, down_);
  add(saved.dh_N2F, x_ND, gate_up_);
}

DeviceExpertStage::DeviceExpertStage(nn::StageSite site, const nn::Parameters& parameters,
                                     const std::vector<ExpertWeights>& experts, const DeviceExpertSlots& slots)
    : Stage(std::move(site)), experts_(parameters, experts), slots_(slots) {}

const kernels::SlotMap& DeviceExpertStage::rows_of(nn::Frame& frame) const {
  return frame.object_as<DeviceDecision>(slots_.decision).slots;
}

kernels::RowGroups DeviceExpertStage::groups(nn::Frame& frame) const {
  return {rows_of(frame).ends_E, *frame.device()->reads};
}

Tensor DeviceExpertStage::rows(nn::Frame& frame) const {
  return gathered(frame.value(slots_.input), rows_of(frame).rows_N);
}

DeviceExpertStage::Saved& DeviceExpertStage::with_gates(nn::Frame& frame) const {
  auto& saved = frame.saved<Saved>(index());
  saved.gates_N = gathered(frame.value(slots_.weights).view({-1}), rows_of(frame).picks_N);
  return saved;
}

void DeviceExpertStage::forward_again(nn::Frame& frame) {
  experts_.pre_activations(rows(frame), groups(frame), with_gates(frame).experts);
}

void DeviceExpertStage::forward(nn::Frame& frame) {
  forward_again(frame);
  const auto& saved = frame.saved<Saved>(index());
  const Tensor results = experts_.results(saved.gates_N, groups(frame), saved.experts);
  Tensor y = at::empty_like(frame.value(slots_.input));
  kernels::aggregate(results, rows_of(frame).slots_TK, y);
  frame.value(slots_.output) = y;
  if (!frame.training()) frame.forget(index());
}

void DeviceExpertStage::backward_input(nn::Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  const kernels::SlotMap& map = rows_of(frame);
  const Tensor dy = gathered(frame.grad(slots_.output), map.rows_N);
  const auto gradients = experts_.backward_input(dy, saved.gates_N, groups(frame), saved.experts);
  Tensor dx = at::empty_like(frame.value(slots_.input));
  kernels::aggregate(gradients.x_ND, map.slots_TK, dx);
  frame.add_grad(slots_.input, dx);
  frame.add_grad(slots_.weights, gathered(gradients.gates_N, map.slots_TK).view(map.slots_TK.sizes()));
}

void DeviceExpertStage::backward_weight(nn::Frame& frame) {
  experts_.backward_weight(rows(frame), groups(frame), frame.saved<Saved>(index()).experts, frame.gradients());
  frame.forget(index());
}

}  // namespace conclave::moe
