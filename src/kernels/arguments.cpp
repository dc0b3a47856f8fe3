// SPDX-License-Identifier: Apache-2.0
#include "kernels/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

[[noreturn]] void refuse(const char* kernel, const char* name, const std::string& why) {
  throw BugError("internal error: kernel {}: {} {}", kernel, name, why);
}

void check_memory(const char* kernel, const Argument& argument) {
  if (!argument.tensor.defined()) refuse(kernel, argument.name, "is undefined");
  if (!argument.tensor.is_contiguous()) refuse(kernel, argument.name, "is not contiguous");
}

void check_beside(const char* kernel, const Tensor& beside, const Argument& argument) {
  check_memory(kernel, argument);
  if (argument.tensor.device() == beside.device()) return;
  refuse(kernel, argument.name, fmt::format("is on {}, the others on {}", argument.tensor.device().str(), beside.device().str()));
}

void check_type(const char* kernel, const Argument& argument, at::ScalarType expected) {
  if (argument.tensor.scalar_type() == expected) return;
  refuse(kernel, argument.name,
         fmt::format("is {}, expected {}", c10::toString(argument.tensor.scalar_type()), c10::toString(expected)));
}

}  // namespace

void check_tensors(const char* kernel, std::initializer_list<Argument> arguments) {
  const Argument* first = nullptr;
  for (const Argument& argument : arguments) {
    check_memory(kernel, argument);
    const at::ScalarType dtype = argument.tensor.scalar_type();
    if (first == nullptr) {
      first = &argument;
      const at::ScalarType other = on_device(argument.tensor) ? at::kBFloat16 : at::kDouble;
      if (!on_device(argument.tensor) && !argument.tensor.is_cpu()) {
        refuse(kernel, argument.name, "is on " + argument.tensor.device().str() + ", but this is a build without CUDA");
      }
      if (dtype != at::kFloat && dtype != other) {
        refuse(kernel, argument.name,
               fmt::format("is {}; only Float and {} are built", c10::toString(dtype), c10::toString(other)));
      }
    }
    check_beside(kernel, first->tensor, argument);
    const at::ScalarType expected = first->tensor.scalar_type();
    if (dtype != expected) {
      refuse(kernel, argument.name,
             fmt::format("is {} but {} is {}", c10::toString(dtype), first->name, c10::toString(expected)));
    }
  }
}

void check_wide(const char* kernel, const Tensor& beside, std::initializer_list<Argument> arguments) {
  for (const Argument& argument : arguments) {
    check_beside(kernel, beside, argument);
    check_type(kernel, argument, beside.scalar_type() == at::kBFloat16 ? at::kFloat : beside.scalar_type());
  }
}

void check_indices(const char* kernel, const Tensor& beside, const Argument& argument, int64_t count) {
  check_beside(kernel, beside, argument);
  check_type(kernel, argument, at::kInt);
  check_count(kernel, argument.name, argument.tensor.numel(), count);
}

void check_factors(const char* kernel, const Tensor& beside, const Argument& argument, int64_t count) {
  check_beside(kernel, beside, argument);
  check_type(kernel, argument, at::kFloat);
  check_count(kernel, argument.name, argument.tensor.numel(), count);
}

void check_on_host(const char* kernel, const char* name, const Tensor& tensor) {
  if (on_device(tensor)) refuse(kernel, name, "lies on the host, but the other tensors on a device: pass it as a tensor");
}

void check_sizes(const char* kernel, const Argument& argument, std::initializer_list<int64_t> sizes) {
  if (argument.tensor.sizes() == at::IntArrayRef(sizes)) return;
  refuse(kernel, argument.name,
         fmt::format("is [{}], expected [{}]", fmt::join(argument.tensor.sizes(), ", "), fmt::join(sizes, ", ")));
}

void check_count(const char* kernel, const char* name, int64_t count, int64_t expected) {
  if (count != expected) refuse(kernel, name, fmt::format("has {} entries, expected {}", count, expected));
}

void check_dimensions(const char* kernel, const Argument& argument, int64_t dimensions) {
  if (argument.tensor.dim() == dimensions) return;
  refuse(kernel, argument.name,
         fmt::format("is [{}], expected {} dimensions", fmt::join(argument.tensor.sizes(), ", "), dimensions));
}

void refuse_index(const char* kernel, const char* name, int64_t value, int64_t limit) {
  refuse(kernel, name, fmt::format("holds {}, which is not in [0, {})", value, limit));
}

}  // namespace conclave::kernels
