// SPDX-License-Identifier: Apache-2.0
// The three products of a linear map y = x·Wᵀ, W stored [out, in]. Plain functions: stages decide when each one runs.
// T tokens (rows), I in, O out. In fp32 no bit of a row depends on the other rows (T a multiple of 16) or on the number
// of threads where I and O are multiples of 16 or O is below 64; kernels/row_invariance.h tries other sizes out.
#pragma once

#include "core/tensor.h"

namespace conclave::nn {

Tensor linear_forward(const Tensor& x_TI, const Tensor& w_OI);
// dx = dy·W
Tensor linear_backward_input(const Tensor& dy_TO, const Tensor& w_OI);
// dW = dyᵀ·x when `fresh`, else dW += it. The sum goes through a scratch matrix: addmm with beta 1 is not bitwise
// independent of the thread count. dW may be float where dy and x are bf16: then nothing is rounded to bf16 between.
void linear_backward_weight(const Tensor& dy_TO, const Tensor& x_TI, bool fresh, Tensor dw_OI);

}  // namespace conclave::nn
