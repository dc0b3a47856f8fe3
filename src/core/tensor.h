// SPDX-License-Identifier: Apache-2.0
// The `Tensor` alias, from LibTorch's smallest header. Files that call operators include <ATen/ops/NAME.h> themselves.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {
using Tensor = at::Tensor;
}  // namespace conclave
