// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding in transformers' layout (rotate_half: element i is paired with element i + head_dim / 2).
// The table is made once per run; rotating is in place and its inverse is its backward. Su et al., 2021.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace conclave::kernels {

struct RopeTable {
  Tensor cos_PH;  // [positions, head_dim / 2]
  Tensor sin_PH;
};

// Angle p * theta^(-2i / head_dim), computed in double and rounded to `dtype` (float or double); `head_dim` is even.
RopeTable rope_table(int64_t positions, int64_t head_dim, double theta, at::ScalarType dtype);

// Rotates every head of x_TND [tokens, heads, head_dim] in place by its token's position; `inverse` rotates back, which
// is the gradient. Row t is token t, with position_ids[t] below the table's number of positions.
void rope(Tensor& x_TND, std::span<const int32_t> position_ids, const RopeTable& table, bool inverse);

// The same with int32 positions on the device of x. The table is float where x is bf16.
void rope(Tensor& x_TND, const Tensor& position_ids_T, const RopeTable& table, bool inverse);

}  // namespace conclave::kernels
