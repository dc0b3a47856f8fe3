// SPDX-License-Identifier: Apache-2.0
#include "nn/feed_forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "kernels/bf16.h"
#include "kernels/rows.h"
#include "kernels/softmax.h"
#include "kernels/swiglu.h"
#include "nn/linear.h"

namespace conclave::nn {

FeedForward::FeedForward(StageSite site, const Parameters& parameters, FeedForwardWeights weights, Wire wire)
    : Stage(std::move(site)), parameters_(parameters), weights_(weights), wire_(wire) {}

std::vector<ParameterId> FeedForward::parameters() const {
  std::vector<ParameterId> ids{weights_.gate_up_2FD, weights_.down_DF};
  if (weights_.output_gate_1D) ids.push_back(*weights_.output_gate_1D);
  return ids;
}

FeedForward::Saved& FeedForward::pre_activations(Frame& frame) const {
  const Tensor& x = frame.value(wire_.input);
  auto& saved = frame.saved<Saved>(index());
  saved.h_T2F = linear_forward(x, parameters_.value(weights_.gate_up_2FD));
  if (weights_.output_gate_1D) {
    const Tensor logits = kernels::wide(linear_forward(x, parameters_.value(*weights_.output_gate_1D)));
    Tensor scale = at::empty_like(logits);
    kernels::sigmoid_rows(logits, scale);
    saved.scale_T = scale.view({-1});
  }
  return saved;
}

void FeedForward::forward_again(Frame& frame) {
  if (output_read_) {
    forward(frame);
  } else {
    pre_activations(frame);
  }
}

void FeedForward::forward(Frame& frame) {
  const Saved& saved = pre_activations(frame);
  Tensor act = at::empty({saved.h_T2F.size(0), saved.h_T2F.size(1) / 2}, saved.h_T2F.options());
  frame.poll();
  kernels::swiglu(saved.h_T2F, saved.scale_T, act);
  frame.value(wire_.output) = linear_forward(act, parameters_.value(weights_.down_DF));
  if (!frame.training()) frame.forget(index());
}

void FeedForward::backward_input(Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  const Tensor dact = linear_backward_input(frame.grad(wire_.output), parameters_.value(weights_.down_DF));
  kernels::SwigluGradients gradients{at::empty_like(saved.h_T2F), {}, at::empty_like(dact)};
  if (weights_.output_gate_1D) gradients.dscale_N = at::empty_like(saved.scale_T);
  kernels::swiglu_backward(dact, saved.h_T2F, saved.scale_T, gradients);
  saved.dh_T2F = gradients.dh_N2F;
  saved.act_TF = gradients.out_NF;
  frame.poll();
  Tensor dx = linear_backward_input(saved.dh_T2F, parameters_.value(weights_.gate_up_2FD));
  if (weights_.output_gate_1D) {
    saved.dgate_T1 = (gradients.dscale_N * saved.scale_T * (1 - saved.scale_T)).view({-1, 1}).to(dx.scalar_type());
    kernels::add(dx, linear_backward_input(saved.dgate_T1, parameters_.value(*weights_.output_gate_1D)));
  }
  frame.add_grad(wire_.input, dx);
}

void FeedForward::backward_weight(Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  auto& gradients = frame.gradients();
  const Tensor& x = frame.value(wire_.input);
  linear_backward_weight(frame.grad(wire_.output), saved.act_TF, gradients.fresh,
                         gradients.view(parameters_[weights_.down_DF]));
  frame.poll();
  linear_backward_weight(saved.dh_T2F, x, gradients.fresh, gradients.view(parameters_[weights_.gate_up_2FD]));
  if (weights_.output_gate_1D) {
    linear_backward_weight(saved.dgate_T1, x, gradients.fresh, gradients.view(parameters_[*weights_.output_gate_1D]));
  }
  frame.forget(index());
}

}  // namespace conclave::nn
