// SPDX-License-Identifier: Apache-2.0
// RMSNorm as in transformers: y = weight * x / sqrt(mean(x^2) + eps), per row. Float, double or bf16, contiguous. rstd
// and the gradient of the weight of bf16 rows are float.
// A row's bits depend on nothing but that row, so batching and threads do not show.
#pragma once

#include "core/tensor.h"

namespace conclave::kernels {

// rstd_T receives 1 / sqrt(mean + eps) of each row, which the backward takes.
void rms_norm(const Tensor& x_TD, const Tensor& weight_D, double eps, Tensor& y_TD, Tensor& rstd_T);

// dx_TD += the gradient of x.
void rms_norm_backward_input(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& weight_D, const Tensor& rstd_T,
                             Tensor& dx_TD);

// dweight_D += the gradient of the weight: blocks of 64 rows, added in row order whatever the number of threads.
void rms_norm_backward_weight(const Tensor& dy_TD, const Tensor& x_TD, const Tensor& rstd_T, Tensor& dweight_D);

}  // namespace conclave::kernels
