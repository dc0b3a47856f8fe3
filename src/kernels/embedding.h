// SPDX-License-Identifier: Apache-2.0
// Token embedding: rows of a table, and their gradient. Float or double. Tokens below 0 are padding: a row of zeros
// forward, nothing backward.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace conclave::kernels {

// out[t] = weight[tokens[t]].
void embedding(const Tensor& weight_VD, std::span<const int32_t> tokens, Tensor& out_TD);

// dweight[tokens[t]] += dy[t], in token order whatever the number of threads.
void embedding_backward(const Tensor& dy_TD, std::span<const int32_t> tokens, Tensor& dweight_VD);

// The same with int32 tokens on the device of the table. dweight may be float where dy is bf16.
void embedding(const Tensor& weight_VD, const Tensor& tokens_T, Tensor& out_TD);
void embedding_backward(const Tensor& dy_TD, const Tensor& tokens_T, Tensor& dweight_VD);

}  // namespace conclave::kernels
