// SPDX-License-Identifier: Apache-2.0
// bf16 on the CPU: every kernel computes in float and rounds its results. A reference for what devices do, not a fast
// path. What a gradient adds to, and what a row has one number of, is float.
#pragma once

#include "core/tensor.h"

namespace conclave::kernels {

inline bool is_bf16(const Tensor& tensor) { return tensor.defined() && tensor.scalar_type() == at::kBFloat16; }

// The type of sums, losses and factors of rows of this type.
inline at::ScalarType wide_type(const Tensor& tensor) { return is_bf16(tensor) ? at::kFloat : tensor.scalar_type(); }

// The tensor in that type; itself where it has it.
inline Tensor wide(const Tensor& tensor) { return is_bf16(tensor) ? tensor.to(at::kFloat) : tensor; }

// Calls f(the wide form of `result`), which f may also read, and rounds what became of it.
template <typename F>
void rounded(Tensor& result, const F& f) {
  Tensor exact = wide(result);
  f(exact);
  if (is_bf16(result)) result.copy_(exact);
}

}  // namespace conclave::kernels
