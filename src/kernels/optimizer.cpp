// SPDX-License-Identifier: Apache-2.0
#include "kernels/optimizer.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/tree_sum.h"
#include "kernels/arguments.h"
#include "kernels/cuda/optimizer.h"
#include "kernels/loops.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"

namespace conclave::kernels {
namespace {

int64_t slices_of(const Tensor& x) { return (x.numel() + kNormSlice - 1) / kNormSlice; }

// Fits the cache of one multiprocessor and is far more than a block's threads.
constexpr int64_t kAdamWBlock = 16384;

AdamWFactors factors_of(const AdamWStep& step) {
  check(step.step >= 1, "adamw: steps count from 1");
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  return {1 - step.lr * step.weight_decay, 1 - step.beta1,         step.beta2, 1 - step.beta2,
          step.lr / correction1,           std::sqrt(correction2), step.eps,   step.grad_scale};
}

}  // namespace

void adamw(Tensor& parameter, Tensor& m, Tensor& v, const Tensor& gradient, const AdamWStep& step) {
  const char* name = "adamw";
  check_tensors(name, {{parameter, "parameter"}, {m, "m"}, {v, "v"}, {gradient, "gradient"}});
  const int64_t n = parameter.numel();
  check_count(name, "m", m.numel(), n);
  check_count(name, "v", v.numel(), n);
  check_count(name, "gradient", gradient.numel(), n);
  const AdamWFactors factors = factors_of(step);
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

Tensor adamw_blocks(std::span<const AdamWRange> ranges, const Tensor& parameters) {
  std::vector<cuda::AdamWBlock> blocks;
  for (const AdamWRange& range : ranges) {
    for (int64_t i = 0; i < range.count; i += kAdamWBlock) {
      const auto count = static_cast<int32_t>(std::min(kAdamWBlock, range.count - i));
      blocks.push_back({range.begin + i, range.at + i, count, range.decays ? 1 : 0});
    }
  }
  constexpr int64_t kBytes = sizeof(cuda::AdamWBlock);
  Tensor table = at::empty({static_cast<int64_t>(blocks.size()), kBytes}, at::kByte);
  if (!blocks.empty()) std::memcpy(table.mutable_data_ptr(), blocks.data(), blocks.size() * kBytes);
  return table.to(parameters.device());
}

namespace {

void check_buffers(const AdamWBuffers& buffers, const Tensor& blocks) {
  const char* name = "adamw";
  const auto& [parameters, m, v, gradients, copy, factor_1] = buffers;
  check_beside(name, parameters, at::kFloat,
               {{parameters, "parameters"}, {m, "m"}, {v, "v"}, {gradients, "gradients"}});
  check_count(name, "v", v.numel(), m.numel());
  check_count(name, "gradients", gradients.numel(), m.numel());
  check_beside(name, parameters, at::kByte, {{blocks, "blocks"}});
  check_sizes(name, {blocks, "blocks"}, {blocks.size(0), static_cast<int64_t>(sizeof(cuda::AdamWBlock))});
  if (copy.defined()) {
    check_beside(name, parameters, at::kBFloat16, {{copy, "copy"}});
    check_count(name, "copy", copy.numel(), parameters.numel());
  }
  if (factor_1.defined()) {
    check_beside(name, parameters, at::kDouble, {{factor_1, "factor_1"}});
    check_count(name, "factor_1", factor_1.numel(), 1);
  }
}

}  // namespace

void adamw(const AdamWBuffers& buffers, const Tensor& blocks, const AdamWStep& step) {
  check_buffers(buffers, blocks);
  const auto& [parameters, m, v, gradients, copy, factor_1] = buffers;
  if (on_device(parameters)) return adamw_on_device(buffers, blocks, factors_of(step));
  AdamWStep scaled = step;
  if (factor_1.defined()) scaled.grad_scale *= factor_1.const_data_ptr<double>()[0];
  AdamWStep undecayed = scaled;
  undecayed.weight_decay = 0;
  const auto* table = static_cast<const cuda::AdamWBlock*>(blocks.const_data_ptr());
  for (int64_t b = 0; b < blocks.size(0); ++b) {
    const auto own = [&](const Tensor& flat) { return flat.narrow(0, table[b].at, table[b].count); };
    Tensor p = parameters.narrow(0, table[b].begin, table[b].count), first = own(m), second = own(v);
    adamw(p, first, second, own(gradients), table[b].decays != 0 ? scaled : undecayed);
    if (copy.defined()) copy.narrow(0, table[b].begin, table[b].count).copy_(p);
  }
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
  if (on_device(x)) return slice_sums_of_squares_on_device(x);
  const std::vector<double> sums = slice_sums_of_squares(x);
  Tensor result = at::empty({std::ssize(sums)}, x.options().dtype(at::kDouble));
  std::copy(sums.begin(), sums.end(), elements<double>(result).begin());
  return result;
}

double sum_of_squares(const Tensor& x) { return tree_sum(std::span<const double>(slice_sums_of_squares(x))); }

Tensor device_sum_of_squares_1(const Tensor& x) {
  if (on_device(x)) return sum_of_squares_on_device(x);
  Tensor total_1 = at::empty({1}, x.options().dtype(at::kDouble));
  *total_1.mutable_data_ptr<double>() = sum_of_squares(x);
  return total_1;
}

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

Tensor device_first_non_finite_1(const Tensor& x) {
  if (on_device(x)) return first_non_finite_on_device(x);
  Tensor index_1 = at::empty({1}, x.options().dtype(at::kLong));
  *index_1.mutable_data_ptr<int64_t>() = first_non_finite(x);
  return index_1;
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
