// SPDX-License-Identifier: Apache-2.0
// Router scores and selection: softmax, sigmoid and top-k per row. Float or double. A row's bits depend on that row
// alone, and ties are broken by expert number, so every layout of the same tokens picks the same experts. On the CPU;
// only sigmoid_rows also takes a device's tensors (routers there: moe_device.h).
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace conclave::kernels {

// probs = softmax(logits); lse_T = log(sum(exp(logits))) per row, for the z-loss. probs_TE is not logits_TE.
void softmax_rows(const Tensor& logits_TE, Tensor& probs_TE, Tensor& lse_T);

// scores = 1 / (1 + exp(-logits)). scores_TE is not logits_TE.
void sigmoid_rows(const Tensor& logits_TE, Tensor& scores_TE);

// The k best columns of every row, best first; of equal scores the lower column; NaN after everything else.
void top_k_rows(const Tensor& scores_TE, int64_t k, std::span<int32_t> ids_TK);

}  // namespace conclave::kernels
