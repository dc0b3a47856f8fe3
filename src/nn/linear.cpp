// SPDX-License-Identifier: Apache-2.0
#include "nn/linear.h"

#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "kernels/bf16.h"
#include "kernels/rows.h"

namespace conclave::nn {

namespace {

constexpr int64_t kOutputs = 16, kFew = 64;

// The bits of few outputs that are no multiple of 16 depend on a row's place and on the number of threads (a router of
// 6 experts, a gate): BLAS treats the rest of a division apart. With columns of zeros beside them they do not.
int64_t padded(int64_t outputs) { return outputs >= kFew ? outputs : (outputs + kOutputs - 1) / kOutputs * kOutputs; }

Tensor padded_rows(const Tensor& w_OI) {
  const int64_t outputs = padded(w_OI.size(0));
  if (outputs == w_OI.size(0)) return w_OI;
  Tensor all = at::zeros({outputs, w_OI.size(1)}, w_OI.options());
  all.narrow(0, 0, w_OI.size(0)).copy_(w_OI);
  return all;
}

Tensor padded_columns(const Tensor& dy_TO) {
  const int64_t outputs = padded(dy_TO.size(1));
  if (outputs == dy_TO.size(1)) return dy_TO;
  Tensor all = at::zeros({dy_TO.size(0), outputs}, dy_TO.options());
  all.narrow(1, 0, dy_TO.size(1)).copy_(dy_TO);
  return all;
}

}  // namespace

Tensor linear_forward(const Tensor& x_TI, const Tensor& w_OI) {
  return at::mm(x_TI, padded_rows(w_OI).t()).narrow(1, 0, w_OI.size(0)).contiguous();
}

Tensor linear_backward_input(const Tensor& dy_TO, const Tensor& w_OI) {
  return at::mm(padded_columns(dy_TO), padded_rows(w_OI));
}

namespace {

// In the type of the masters; a device's product has it at once.
Tensor exact_product(const Tensor& dy_TO, const Tensor& x_TI) {
  return dy_TO.is_cuda() ? at::mm(dy_TO.t(), x_TI, at::kFloat) : at::mm(kernels::wide(dy_TO).t(), kernels::wide(x_TI));
}

}  // namespace

void linear_backward_weight(const Tensor& dy_TO, const Tensor& x_TI, bool fresh, Tensor dw_OI) {
  const int64_t outputs = dy_TO.size(1);
  if (kernels::is_bf16(dy_TO)) {
    if (fresh) dw_OI.zero_();
    dw_OI.add_(exact_product(dy_TO, x_TI));
    return;
  }
  if (fresh && padded(outputs) == outputs) {
    at::mm_out(dw_OI, dy_TO.t(), x_TI);
    return;
  }
  const Tensor product = at::mm(padded_columns(dy_TO).t(), x_TI).narrow(0, 0, outputs);
  if (fresh) {
    dw_OI.copy_(product);
  } else {
    kernels::add(dw_OI, product);
  }
}

}  // namespace conclave::nn
