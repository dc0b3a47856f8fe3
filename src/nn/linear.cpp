// SPDX-License-Identifier: Apache-2.0
#include "nn/linear.h"

#include <ATen/ops/mm.h>

#include "kernels/rows.h"

namespace conclave::nn {

Tensor linear_forward(const Tensor& x_TI, const Tensor& w_OI) { return at::mm(x_TI, w_OI.t()); }

Tensor linear_backward_input(const Tensor& dy_TO, const Tensor& w_OI) { return at::mm(dy_TO, w_OI); }

void linear_backward_weight(const Tensor& dy_TO, const Tensor& x_TI, bool fresh, Tensor dw_OI) {
  if (fresh) {
    at::mm_out(dw_OI, dy_TO.t(), x_TI);
  } else {
    kernels::add(dw_OI, at::mm(dy_TO.t(), x_TI));
  }
}

}  // namespace conclave::nn
