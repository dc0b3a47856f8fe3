// SPDX-License-Identifier: Apache-2.0
#include "kernels/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.h"

namespace conclave::kernels {
namespace {

[[noreturn]] void refuse(const char* kernel, const char* name, const std::string& why) {
  throw BugError("internal error: kernel {}: {} {}", kernel, name, why);
}

}  // namespace

void check_tensors(const char* kernel, std::initializer_list<Argument> arguments) {
  const char* first = nullptr;
  at::ScalarType dtype = at::kFloat;
  for (const auto& [tensor, name] : arguments) {
    if (!tensor.defined()) refuse(kernel, name, "is undefined");
    if (!tensor.is_cpu()) refuse(kernel, name, "is not on the CPU");
    if (!tensor.is_contiguous()) refuse(kernel, name, "is not contiguous");
    if (first == nullptr) {
      first = name;
      dtype = tensor.scalar_type();
      if (dtype != at::kFloat && dtype != at::kDouble) {
        refuse(kernel, name, fmt::format("is {}; only Float and Double are built", c10::toString(dtype)));
      }
    }
    if (tensor.scalar_type() != dtype) {
      refuse(kernel, name,
             fmt::format("is {} but {} is {}", c10::toString(tensor.scalar_type()), first, c10::toString(dtype)));
    }
  }
}

void check_beside(const char* kernel, const Tensor& beside, at::ScalarType dtype,
                  std::initializer_list<Argument> arguments) {
  for (const auto& [tensor, name] : arguments) {
    if (!tensor.defined()) refuse(kernel, name, "is undefined");
    if (!tensor.is_contiguous()) refuse(kernel, name, "is not contiguous");
    if (tensor.device() != beside.device()) {
      refuse(kernel, name, fmt::format("is on {}, the others on {}", tensor.device().str(), beside.device().str()));
    }
    if (tensor.scalar_type() != dtype) {
      refuse(kernel, name,
             fmt::format("is {}, expected {}", c10::toString(tensor.scalar_type()), c10::toString(dtype)));
    }
  }
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
