// SPDX-License-Identifier: Apache-2.0
#include "kernels/optimizer.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/tree_sum.h"
#include "kernels/arguments.h"
#include "kernels/loops.h"
#include "kernels/parallel.h"

namespace conclave::kernels {
namespace {

int64_t slices_of(const Tensor& x) { return (x.numel() + kNormSlice - 1) / kNormSlice; }

}  // namespace

void adamw(Tensor& parameter, Tensor& m, Tensor& v, const Tensor& gradient, const AdamWStep& step) {
  const char* name = "adamw";
  check_tensors(name, {{parameter, "parameter"}, {m, "m"}, {v, "v"}, {gradient, "gradient"}});
  const int64_t n = parameter.numel();
  check_count(name, "m", m.numel(), n);
  check_count(name, "v", v.numel(), n);
  check_count(name, "gradient", gradient.numel(), n);
  check(step.step >= 1, "adamw: steps count from 1");
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  const AdamWFactors factors{1 - step.lr * step.weight_decay, 1 - step.beta1,         step.beta2, 1 - step.beta2,
                             step.lr / correction1,           std::sqrt(correction2), step.eps,   step.grad_scale};
  with_type(parameter, [&](auto zero) {
    using T = decltype(zero);
    T* p = parameter.mutable_data_ptr<T>();
    T* first = m.mutable_data_ptr<T>();
    T* second = v.mutable_data_ptr<T>();
    const T* g = gradient.const_data_ptr<T>();
    for_rows(n, 4, [&](int64_t begin, int64_t end) {
      loops<T>().adamw(p + begin, first + begin, second + begin, g + begin, factors, end - begin);
    });
  });
}

std::vector<double> slice_sums_of_squares(const Tensor& x) {
  check_tensors("slice_sums_of_squares", {{x, "x"}});
  std::vector<double> sums(slices_of(x));
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* values = x.const_data_ptr<T>();
    for_rows(slices_of(x), kNormSlice, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        const int64_t first = s * kNormSlice;
        sums[s] = loops<T>().sum_of_squares(values + first, std::min(kNormSlice, x.numel() - first));
      }
    });
  });
  return sums;
}

Tensor device_slice_sums_of_squares(const Tensor& x) {
  const std::vector<double> sums = slice_sums_of_squares(x);
  Tensor result = at::empty({std::ssize(sums)}, x.options().dtype(at::kDouble));
  std::copy(sums.begin(), sums.end(), elements<double>(result).begin());
  return result;
}

double sum_of_squares(const Tensor& x) { return tree_sum(std::span<const double>(slice_sums_of_squares(x))); }

int64_t first_non_finite(const Tensor& x) {
  check_tensors("first_non_finite", {{x, "x"}});
  std::vector<int64_t> found(slices_of(x), -1);
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    const T* values = x.const_data_ptr<T>();
    for_rows(slices_of(x), kNormSlice, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        const int64_t first = s * kNormSlice, last = std::min(first + kNormSlice, x.numel());
        if (loops<T>().all_finite(values + first, last - first)) continue;
        for (int64_t i = first; i < last && found[s] < 0; ++i) {
          if (!std::isfinite(values[i])) found[s] = i;
        }
      }
    });
  });
  for (const int64_t index : found) {
    if (index >= 0) return index;
  }
  return -1;
}

void fill_normal(Tensor& x, const Random& random, uint64_t first_element, double std) {
  check_tensors("fill_normal", {{x, "x"}});
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    T* values = x.mutable_data_ptr<T>();
    for_rows(x.numel(), 32, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        values[i] = static_cast<T>(random.normal(first_element + static_cast<uint64_t>(i)) * std);
      }
    });
  });
}

}  // namespace conclave::kernels
