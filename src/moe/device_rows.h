// SPDX-License-Identifier: Apache-2.0
// Rows of the device path in another order. Copies only.
#pragma once

#include "core/tensor.h"

namespace conclave::moe {

// values[index[i]], zero where the index is below 0: rows [N, D], or one number for each row [N]. `index` is int32 on
// the same device, of any shape that has one entry for each row.
Tensor gathered(const Tensor& values, const Tensor& index);

}  // namespace conclave::moe
