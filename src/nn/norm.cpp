// SPDX-License-Identifier: Apache-2.0
#include "nn/norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/bf16.h"
#include "kernels/norm.h"
#include "parallel/ordered_sum.h"

namespace conclave::nn {

Norm::Norm(const Parameters& parameters, ParameterId weight, double eps, const comm::Group& across)
    : parameters_(parameters), weight_(weight), eps_(eps), across_(across) {}

Tensor Norm::row_mean(const Tensor& a, const Tensor& b) const {
  Tensor sums = (a * b).sum(1, true);
  by_dtype(sums, [&](auto zero) { parallel::ordered_sum(across_, elements<decltype(zero)>(sums)); });
  return sums / static_cast<double>(a.size(1) * across_.size());
}

Tensor Norm::forward(const Tensor& x, Saved& saved) const {
  saved.x = x;
  if (across_.size() > 1) {
    const Tensor rstd = at::rsqrt(row_mean(x, x) + eps_);
    saved.rstd = rstd.view({-1});
    return x * rstd * parameters_.value(weight_);
  }
  Tensor y = at::empty_like(x);
  saved.rstd = at::empty({x.size(0)}, x.options().dtype(kernels::wide_type(x)));
  kernels::rms_norm(x, parameters_.value(weight_), eps_, y, saved.rstd);
  return y;
}

Tensor Norm::backward_input(const Tensor& dy, const Saved& saved) const {
  if (across_.size() > 1) {
    const Tensor rstd = saved.rstd.view({-1, 1});
    const Tensor normal = saved.x * rstd, scaled = dy * parameters_.value(weight_);
    return rstd * (scaled - normal * row_mean(scaled, normal));
  }
  Tensor dx = at::zeros_like(dy);
  kernels::rms_norm_backward_input(dy, saved.x, parameters_.value(weight_), saved.rstd, dx);
  return dx;
}

void Norm::backward_weight(const Tensor& dy, const Saved& saved, Gradients& gradients) const {
  Tensor gradient = gradients.view(parameters_[weight_]);
  kernels::rms_norm_backward_weight(dy, saved.x, saved.rstd, gradient);
}

NormStage::NormStage(StageSite site, Norm norm, Slot input, Slot output)
    : Stage(std::move(site)), norm_(norm), input_(input), output_(output) {}

void NormStage::forward(Frame& frame) {
  frame.value(output_) = norm_.forward(frame.value(input_), frame.saved<Norm::Saved>(index()));
  if (!frame.training()) frame.forget(index());
}

void NormStage::backward_input(Frame& frame) {
  frame.add_grad(input_, norm_.backward_input(frame.grad(output_), frame.saved<Norm::Saved>(index())));
}

void NormStage::backward_weight(Frame& frame) {
  norm_.backward_weight(frame.grad(output_), frame.saved<Norm::Saved>(index()), frame.gradients());
  frame.forget(index());
}

}  // namespace conclave::nn
