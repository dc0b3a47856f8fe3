// SPDX-License-Identifier: Apache-2.0
// Rows as bytes, in the formats of `moe.dispatch.payload`. bf16 rounds each number to nearest even. fp8 is E4M3
// (Micikevicius et al. 2022, arXiv 2209.05433) with one scale for each row, max |x| / 448 in fp32, before its numbers:
// a token's row on its way to the experts as in MegaScale-MoE (arXiv 2505.11432), and the same for what comes back.
#pragma once

#include "core/tensor.h"
#include "moe/moe_config.h"

namespace conclave::moe {

// Of one row of `rows_ND`, of type float or double.
int64_t row_bytes(const Tensor& rows_ND, DispatchPayload payload);
// Rounds `rows_ND` into `bytes`, as many as its rows take, contiguous. What is not finite makes an fp8 row NaN.
void pack_rows(const Tensor& rows_ND, const Tensor& bytes, DispatchPayload payload);
// The numbers that `bytes` stand for.
void unpack_rows(const Tensor& bytes, const Tensor& rows_ND, DispatchPayload payload);

}  // namespace conclave::moe
