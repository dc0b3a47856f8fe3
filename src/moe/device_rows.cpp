// SPDX-License-Identifier: Apache-2.0
#include "moe/device_rows.h"

#include <ATen/ops/empty.h>

#include "kernels/rows.h"

namespace conclave::moe {

Tensor gathered(const Tensor& values, const Tensor& index) {
  const bool are_rows = values.dim() == 2;
  const Tensor rows = are_rows ? values : values.view({values.numel(), 1});
  Tensor result = at::empty({index.numel(), rows.size(1)}, values.options());
  kernels::gather_rows(rows, index.view({-1}), result);
  return are_rows ? result : result.view({-1});
}

}  // namespace conclave::moe
