// SPDX-License-Identifier: Apache-2.0
#include "kernels/tensor_checks.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/random.h"

namespace conclave::kernels {

Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  Tensor tensor = at::empty(sizes, at::kFloat);
  const Random random(seed, Purpose::kTest);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    tensor.mutable_data_ptr<float>()[i] = static_cast<float>(random.normal(static_cast<uint64_t>(i)));
  }
  return tensor.to(dtype);
}

std::vector<int32_t> random_indices(int64_t count, int32_t low, int32_t high, uint64_t seed) {
  const Random random(seed, Purpose::kTest);
  std::vector<int32_t> indices(static_cast<size_t>(count));
  for (size_t i = 0; i < indices.size(); ++i) {
    indices[i] = low + static_cast<int32_t>(random.bits(i) % static_cast<uint64_t>(high - low));
  }
  return indices;
}

Tensor leaf(const Tensor& tensor) { return tensor.detach().to(at::kDouble, false, true).requires_grad_(true); }

void expect_close(const Tensor& actual, const Tensor& expected, const std::string& what) {
  ASSERT_TRUE(actual.defined() && expected.defined()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const double unit = actual.scalar_type() == at::kFloat ? 2e-6 : 4e-14;
  const Tensor a = actual.detach().to(at::kDouble).contiguous(), b = expected.detach().to(at::kDouble).contiguous();
  double largest = 1e-3;
  for (int64_t i = 0; i < b.numel(); ++i) largest = std::max(largest, std::abs(b.const_data_ptr<double>()[i]));
  for (int64_t i = 0; i < a.numel(); ++i) {
    ASSERT_NEAR(a.const_data_ptr<double>()[i], b.const_data_ptr<double>()[i], unit * largest)
        << what << ", element " << i << " of " << actual.sizes() << " " << actual.scalar_type();
  }
}

void expect_same_bits(const Tensor& actual, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  const Tensor a = actual.contiguous(), b = expected.contiguous();
  const auto* x = static_cast<const char*>(a.const_data_ptr());
  const auto* y = static_cast<const char*>(b.const_data_ptr());
  const auto size = static_cast<int64_t>(a.itemsize());
  for (int64_t i = 0; i < a.numel(); ++i) {
    ASSERT_EQ(std::memcmp(x + i * size, y + i * size, a.itemsize()), 0) << what << ": other bits in element " << i;
  }
}

void expect_threads_do_not_show(const std::function<std::vector<Tensor>()>& results) {
  at::set_num_threads(1);
  const std::vector<Tensor> expected = results();
  for (const int threads : {2, 3, 7}) {
    at::set_num_threads(threads);
    const std::vector<Tensor> actual = results();
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      expect_same_bits(actual[i], expected[i], std::to_string(threads) + " threads, result " + std::to_string(i));
    }
  }
  at::set_num_threads(1);
}

void expect_other_rows_do_not_show(int64_t rows, const std::function<std::vector<Tensor>(int64_t, int64_t)>& results) {
  const std::vector<Tensor> whole = results(0, rows);
  for (const int64_t count : {int64_t{1}, int64_t{2}, int64_t{3}, rows / 2}) {
    for (int64_t first = 0; first + count <= rows; first += count + 1) {
      const std::vector<Tensor> part = results(first, count);
      for (size_t i = 0; i < part.size(); ++i) {
        expect_same_bits(part[i], whole[i].narrow(0, first, count),
                         "rows " + std::to_string(first) + " + " + std::to_string(count));
      }
    }
  }
}

}  // namespace conclave::kernels
