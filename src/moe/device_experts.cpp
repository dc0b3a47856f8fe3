// SPDX-License-Identifier: Apache-2.0
#include "moe/device_experts.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "kernels/rows.h"
#include "kernels/swiglu.h"

namespace conclave::moe {
namespace {

// Numbers of rows: values[index[i]], 0 where the index is below 0.
Tensor picked(const Tensor& values, const Tensor& index) {
  Tensor result = at::empty({index.numel(), 1}, values.options());
  kernels::gather_rows(values.reshape({-1, 1}), index.view({-1}), result);
  return result.view({-1});
}

}  // namespace

DeviceExpertStage::DeviceExpertStage(nn::StageSite site, const nn::Parameters& parameters,
                                     const std::vector<ExpertWeights>& experts, const DeviceExpertSlots& slots)
    : Stage(std::move(site)), parameters_(parameters), slots_(slots) {
  for (const auto& expert : experts) {
    gate_up_.push_back(expert.gate_up_2FD);
    down_.push_back(expert.down_DF);
  }
}

std::vector<nn::ParameterId> DeviceExpertStage::parameters() const {
  std::vector<nn::ParameterId> ids = gate_up_;
  ids.insert(ids.end(), down_.begin(), down_.end());
  return ids;
}

const kernels::SlotMap& DeviceExpertStage::rows_of(nn::Frame& frame) const {
  return frame.object_as<DeviceDecision>(slots_.decision).slots;
}

kernels::RowGroups DeviceExpertStage::groups(nn::Frame& frame) const {
  return {rows_of(frame).ends_E, *frame.device()->reads};
}

Tensor DeviceExpertStage::gathered(const Tensor& x_TD, nn::Frame& frame) const {
  const Tensor& rows_N = rows_of(frame).rows_N;
  Tensor x_ND = at::empty({rows_N.numel(), x_TD.size(1)}, x_TD.options());
  kernels::gather_rows(x_TD, rows_N, x_ND);
  return x_ND;
}

DeviceExpertStage::Saved& DeviceExpertStage::pre_activations(nn::Frame& frame) const {
  auto& saved = frame.saved<Saved>(index());
  const Tensor x_ND = gathered(frame.value(slots_.input), frame), weights = parameters_.stacked_value(gate_up_);
  saved.gates_N = picked(frame.value(slots_.weights), rows_of(frame).picks_N);
  saved.h_N2F = at::empty({x_ND.size(0), weights.size(1)}, x_ND.options());
  kernels::grouped_forward(x_ND, weights, groups(frame), saved.h_N2F);
  return saved;
}

void DeviceExpertStage::forward_again(nn::Frame& frame) { pre_activations(frame); }

void DeviceExpertStage::forward(nn::Frame& frame) {
  const Saved& saved = pre_activations(frame);
  const Tensor& x = frame.value(slots_.input);
  Tensor act = at::empty({saved.h_N2F.size(0), saved.h_N2F.size(1) / 2}, x.options());
  kernels::swiglu(saved.h_N2F, saved.gates_N, act);
  Tensor rows = at::empty({act.size(0), x.size(1)}, x.options()), y = at::empty_like(x);
  kernels::grouped_forward(act, parameters_.stacked_value(down_), groups(frame), rows);
  kernels::aggregate(rows, rows_of(frame).slots_TK, y);
  frame.value(slots_.output) = y;
  if (!frame.training()) frame.forget(index());
}

void DeviceExpertStage::backward_input(nn::Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  const Tensor& slots_TK = rows_of(frame).slots_TK;
  saved.dy_ND = gathered(frame.grad(slots_.output), frame);
  Tensor dact = at::empty({saved.h_N2F.size(0), saved.h_N2F.size(1) / 2}, saved.h_N2F.options());
  kernels::grouped_backward_input(saved.dy_ND, parameters_.stacked_value(down_), groups(frame), dact);
  kernels::SwigluGradients inner{at::empty_like(saved.h_N2F), at::empty_like(saved.gates_N), at::empty_like(dact)};
  kernels::swiglu_backward(dact, saved.h_N2F, saved.gates_N, inner);
  saved.dh_N2F = inner.dh_N2F;
  saved.act_NF = inner.out_NF;
  Tensor drows = at::empty_like(saved.dy_ND), dx = at::empty_like(frame.value(slots_.input));
  kernels::grouped_backward_input(saved.dh_N2F, parameters_.stacked_value(gate_up_), groups(frame), drows);
  kernels::aggregate(drows, slots_TK, dx);
  frame.add_grad(slots_.input, dx);
  frame.add_grad(slots_.weights, picked(inner.dscale_N, slots_TK).view(slots_TK.sizes()));
}

void DeviceExpertStage::add_weight_gradient(const Tensor& dy, const Tensor& x, const std::vector<nn::ParameterId>& ids,
                                            nn::Frame& frame) const {
  const nn::Gradients& gradients = frame.gradients();
  check(gradients.experts.size() == 1, "a device sums gradients of all sources in one buffer");
  Tensor dw = nn::stacked_view(gradients.experts[0], parameters_, ids);
  kernels::grouped_backward_weight(dy, x, groups(frame), gradients.fresh, dw);
}

void DeviceExpertStage::backward_weight(nn::Frame& frame) {
  const auto& saved = frame.saved<Saved>(index());
  add_weight_gradient(saved.dy_ND, saved.act_NF, down_, frame);
  add_weight_gradient(saved.dh_N2F, gathered(frame.value(slots_.input), frame), gate_up_, frame);
  frame.forget(index());
}

}  // namespace conclave::moe
