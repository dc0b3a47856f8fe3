// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_runs.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

namespace conclave::kernels {

Tensor index_tensor(const std::vector<int32_t>& values) {
  Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kInt);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<int32_t>());
  return tensor;
}

void expect_rounded(const Tensor& actual, const Tensor& expected, const std::string& what, double sums) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const double unit = actual.scalar_type() == at::kBFloat16 ? 0x1p-8 : 2e-6 * sums;
  const Tensor a = actual.to(at::kDouble).contiguous(), b = expected.detach().to(at::kDouble).contiguous();
  double largest = 1e-3;
  for (int64_t i = 0; i < b.numel(); ++i) largest = std::max(largest, std::abs(b.const_data_ptr<double>()[i]));
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double value = b.const_data_ptr<double>()[i];
    // bf16 rounds each element by its own size, and sums of bf16 inputs are as good as those of floats.
    const double bound =
        actual.scalar_type() == at::kBFloat16 ? unit * std::abs(value) + 4e-6 * sums * largest : unit * largest;
    ASSERT_NEAR(a.const_data_ptr<double>()[i], value, bound)
        << what << ", element " << i << " of " << actual.sizes() << " " << actual.scalar_type();
  }
}

}  // namespace conclave::kernels
