// SPDX-License-Identifier: Apache-2.0
// The `Tensor` alias, from LibTorch's smallest header, and typed views of its memory. Files that call operators include
// <ATen/ops/NAME.h> themselves.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <utility>

#include "core/error.h"

namespace conclave {

using Tensor = at::Tensor;

// The elements of a contiguous tensor.
template <typename T>
std::span<T> elements(const Tensor& tensor) {
  check(tensor.is_contiguous(), "elements() of a tensor that is not contiguous");
  return {tensor.data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

// Calls body(T{}) with the tensor's floating type: the reference path runs in fp64 too.
template <typename Body>
void by_dtype(const Tensor& tensor, Body&& body) {
  if (tensor.scalar_type() == at::kDouble) {
    std::forward<Body>(body)(double{});
  } else {
    check(tensor.scalar_type() == at::kFloat, "a tensor of float or double is needed");
    std::forward<Body>(body)(float{});
  }
}

}  // namespace conclave
