// SPDX-License-Identifier: Apache-2.0
// Rows times one number each, and products of rows: what is added to an expert layer's output at a token's home. Float
// or double. The bits of a row depend on that row alone.
#pragma once

#include "core/tensor.h"

namespace conclave::kernels {

// y[t] += scale[t] · x[t].
void add_scaled_rows(const Tensor& x_TD, const Tensor& scale_T, Tensor& y_TD);

// scale[t] · x[t].
Tensor scaled_rows(const Tensor& x_TD, const Tensor& scale_T);

// Σ_d a[t, d] · b[t, d], added in the order of d.
Tensor row_products(const Tensor& a_TD, const Tensor& b_TD);

}  // namespace conclave::kernels
