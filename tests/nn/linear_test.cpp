// SPDX-License-Identifier: Apache-2.0
// Bits of the three products for few and odd outputs (a router of 6 experts, a gate): they must not depend on the
// number of threads, nor a row on the rows beside it.
#include "nn/linear.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/max.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/random.h"
#include "kernels/optimizer.h"

namespace conclave::nn {
namespace {

Tensor random_matrix(int64_t rows, int64_t columns, const char* name) {
  Tensor matrix = at::zeros({rows, columns}, at::kFloat);
  kernels::fill_normal(matrix, Random(3, Purpose::kTest, name), 0, 1.0);
  return matrix;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

class LinearTest : public ::testing::TestWithParam<int64_t> {
 protected:
  ~LinearTest() override { at::set_num_threads(1); }
  const int64_t outputs_ = GetParam();
  const Tensor x_ = random_matrix(256, 208, "x"), w_ = random_matrix(outputs_, 208, "w");
  const Tensor dy_ = random_matrix(256, outputs_, "dy");
};

TEST_P(LinearTest, EqualsTheDefinition) {
  const auto close = [](const Tensor& got, const Tensor& expected) {
    return got.to(at::kDouble).sub(expected).abs().max().item<double>() < 1e-4;
  };
  const Tensor x = x_.to(at::kDouble), w = w_.to(at::kDouble), dy = dy_.to(at::kDouble);
  EXPECT_TRUE(close(linear_forward(x_, w_), x.matmul(w.t())));
  EXPECT_TRUE(close(linear_backward_input(dy_, w_), dy.matmul(w)));
  Tensor dw = at::zeros({outputs_, 208});
  linear_backward_weight(dy_, x_, true, dw);
  EXPECT_TRUE(close(dw, dy.t().matmul(x)));
  linear_backward_weight(dy_, x_, false, dw);
  EXPECT_TRUE(close(dw, dy.t().matmul(x).mul(2)));
}

TEST_P(LinearTest, ThreadsAndOtherRowsDoNotShow) {
  at::set_num_threads(1);
  const Tensor y = linear_forward(x_, w_), dx = linear_backward_input(dy_, w_);
  for (const int threads : {1, 2, 3, 4}) {
    at::set_num_threads(threads);
    for (const int64_t rows : {16, 48, 112, 208, 256}) {
      for (const int64_t first : {int64_t{0}, 256 - rows}) {
        EXPECT_TRUE(same_bits(linear_forward(x_.narrow(0, first, rows), w_), y.narrow(0, first, rows)))
            << threads << " " << rows;
        EXPECT_TRUE(same_bits(linear_backward_input(dy_.narrow(0, first, rows), w_), dx.narrow(0, first, rows)))
            << threads << " " << rows;
      }
      const auto weight_gradient = [&](int count) {
        at::set_num_threads(count);
        Tensor dw = at::zeros({outputs_, 208});
        linear_backward_weight(dy_.narrow(0, 0, rows), x_.narrow(0, 0, rows), true, dw);
        return dw;
      };
      EXPECT_TRUE(same_bits(weight_gradient(threads), weight_gradient(1))) << threads << " " << rows;
      at::set_num_threads(threads);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Outputs, LinearTest,
                         ::testing::Values(1, 2, 3, 5, 6, 7, 8, 9, 10, 13, 15, 16, 20, 24, 33, 40, 56, 60, 63, 64));

}  // namespace
}  // namespace conclave::nn
