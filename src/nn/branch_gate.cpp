// SPDX-License-Identifier: Apache-2.0
#include "nn/branch_gate.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "kernels/row_terms.h"
#include "kernels/rows.h"
#include "kernels/softmax.h"
#include "nn/linear.h"

namespace conclave::nn {
namespace {

Tensor column(const Tensor& c_T2, int64_t which) { return c_T2.select(1, which).contiguous(); }

}  // namespace

void BranchGate::forward(Frame& frame) {
  Tensor logits = linear_forward(frame.value(slots_.input), parameters_.value(weights_.weight_2D));
  kernels::add_bias(logits, parameters_.value(weights_.bias_2));
  Tensor c = at::empty_like(logits), lse = at::empty({logits.size(0)}, logits.options());
  kernels::softmax_rows(logits, c, lse);
  Tensor y = kernels::scaled_rows(frame.value(slots_.first), column(c, 0));
  kernels::add_scaled_rows(frame.value(slots_.second), column(c, 1), y);
  frame.value(slots_.output) = y;
  if (frame.training()) frame.saved<Saved>(index()).c_T2 = c;
}

void BranchGate::backward_input(Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  const Tensor& dy = frame.grad(slots_.output);
  const Tensor first = kernels::row_products(dy, frame.value(slots_.first)),
               second = kernels::row_products(dy, frame.value(slots_.second));
  saved.dlogits_T2 = at::empty_like(saved.c_T2);
  by_dtype(dy, [&](auto zero) {
    using T = decltype(zero);
    const auto a = elements<T>(first), b = elements<T>(second), c = elements<T>(saved.c_T2),
               out = elements<T>(saved.dlogits_T2);
    for (size_t t = 0; t < a.size(); ++t) {
      out[2 * t] = c[2 * t] * c[2 * t + 1] * (a[t] - b[t]);
      out[2 * t + 1] = -out[2 * t];
    }
  });
  frame.add_grad(slots_.input, linear_backward_input(saved.dlogits_T2, parameters_.value(weights_.weight_2D)));
  frame.add_grad(slots_.first, kernels::scaled_rows(dy, column(saved.c_T2, 0)));
  frame.add_grad(slots_.second, kernels::scaled_rows(dy, column(saved.c_T2, 1)));
}

void BranchGate::backward_weight(Frame& frame) {
  const Tensor& dlogits = frame.saved<Saved>(index()).dlogits_T2;
  auto& gradients = frame.gradients();
  linear_backward_weight(dlogits, frame.value(slots_.input), gradients.fresh,
                         gradients.view(parameters_[weights_.weight_2D]));
  Tensor bias = gradients.view(parameters_[weights_.bias_2]);
  kernels::sum_columns(dlogits, bias);
  frame.forget(index());
}

}  // namespace conclave::nn
