// SPDX-License-Identifier: Apache-2.0
// Rows times one number each, products of rows, and both with a few vectors of a layer: what is added to an expert
// layer's output at a token's home. Float or double. The bits of a row depend on that row alone, those of
// `add_weighted_rows` on neither the number of threads nor which of them computes.
#pragma once

#include "core/tensor.h"

namespace conclave::kernels {

// y[t] += scale[t] · x[t].
void add_scaled_rows(const Tensor& x_TD, const Tensor& scale_T, Tensor& y_TD);

// scale[t] · x[t].
Tensor scaled_rows(const Tensor& x_TD, const Tensor& scale_T);

// Σ_d a[t, d] · b[t, d], added in the order of d.
Tensor row_products(const Tensor& a_TD, const Tensor& b_TD);

// y[t] += Σ_n w[t, n] · v[n], added in the order of n.
void add_combinations(const Tensor& w_TN, const Tensor& v_ND, Tensor& y_TD);

// [T, N]: Σ_d x[t, d] · v[n, d].
Tensor vector_products(const Tensor& x_TD, const Tensor& v_ND);

// sums[n] += Σ_t w[t, n] · x[t], summed in double in the order of t.
void add_weighted_rows(const Tensor& w_TN, const Tensor& x_TD, Tensor& sums_ND);

}  // namespace conclave::kernels
