// SPDX-License-Identifier: Apache-2.0
// What every kernel asks of its tensors: on the CPU, contiguous, float or double, the expected sizes. A failure is a
// bug of ours, so it throws BugError; the text names kernel, argument, what it is and what it should be.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>

#include "core/tensor.h"

namespace conclave::kernels {

struct Argument {
  const Tensor& tensor;
  const char* name;  // with its shape suffix, for example "x_TD"
};

// Throws BugError unless every argument is a contiguous CPU tensor of one dtype, float or double.
void check_tensors(const char* kernel, std::initializer_list<Argument> arguments);

// Throws BugError unless every argument is a contiguous tensor of `dtype` on the device of `beside`.
void check_beside(const char* kernel, const Tensor& beside, at::ScalarType dtype,
                  std::initializer_list<Argument> arguments);

// Throws BugError unless the tensor's sizes are `sizes`.
void check_sizes(const char* kernel, const Argument& argument, std::initializer_list<int64_t> sizes);

// Throws BugError unless `count`, the length of the list `name`, is `expected`.
void check_count(const char* kernel, const char* name, int64_t count, int64_t expected);

// Throws BugError unless the tensor has `dimensions` dimensions; needed before size(i) is read.
void check_dimensions(const char* kernel, const Argument& argument, int64_t dimensions);

// Throws BugError: entry `index` of the list `name` is `value`, which is not below `limit`.
[[noreturn]] void refuse_index(const char* kernel, const char* name, int64_t value, int64_t limit);

inline void check_index(const char* kernel, const char* name, int64_t value, int64_t limit) {
  if (value < 0 || value >= limit) refuse_index(kernel, name, value, limit);
}

// Calls f with a zero of the tensor's C++ type: the one place where a dtype turns into a template argument.
template <typename F>
void with_type(const Tensor& tensor, F&& f) {
  if (tensor.scalar_type() == at::kDouble) {
    f(double{});
  } else {
    f(float{});
  }
}

}  // namespace conclave::kernels
