// SPDX-License-Identifier: Apache-2.0
// What the kernel tests share: deterministic tensors, comparison with a reference computed in double, and the two
// bitwise properties every kernel has (threads do not show, other rows do not show).
#pragma once

#include <ATen/TensorOperators.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace conclave::kernels {

// Normal values; the same for equal sizes and seed, and the same (rounded) in both dtypes.
Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed);

// Whole numbers in [low, high), as the kernels take indices.
std::vector<int32_t> random_indices(int64_t count, int32_t low, int32_t high, uint64_t seed);

// A copy in double that autograd follows.
Tensor leaf(const Tensor& tensor);

// Every element within a few roundings of `expected` (any dtype, usually double), measured against its largest element.
void expect_close(const Tensor& actual, const Tensor& expected, const std::string& what);

void expect_same_bits(const Tensor& actual, const Tensor& expected, const std::string& what);

// Runs `results` with 1, 2, 3 and 7 threads and expects the same bits. Restores one thread.
void expect_threads_do_not_show(const std::function<std::vector<Tensor>()>& results);

// `results(first, count)` runs the kernel on those rows alone: expects the bits it has among all rows, for many pieces.
void expect_other_rows_do_not_show(int64_t rows, const std::function<std::vector<Tensor>(int64_t, int64_t)>& results);

inline const std::vector<at::ScalarType> kBothTypes = {at::kFloat, at::kDouble};

}  // namespace conclave::kernels
