// SPDX-License-Identifier: Apache-2.0
#include "kernels/norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

struct Sizes {
  int64_t rows, columns;
};
const std::vector<Sizes> kSizes = {{0, 8}, {1, 1}, {1, 7}, {3, 1}, {5, 64}, {130, 65}, {9, 127}, {4, 1000}, {2, 4099}};

Tensor reference(const Tensor& x, const Tensor& weight, double eps) {
  return weight * (x * (x.pow(2).mean(-1, true) + eps).rsqrt());
}

// Large enough that one column, whose gradient is almost zero, is not all rounding.
constexpr double kEps = 0.01;

struct Normed {
  Tensor y, rstd;
};

Normed norm(const Tensor& x, const Tensor& weight, double eps = kEps) {
  Normed out{at::empty_like(x), at::empty({x.size(0)}, x.scalar_type())};
  rms_norm(x, weight, eps, out.y, out.rstd);
  return out;
}

TEST(NormTest, EqualsTheReferenceForwardAndBackward) {
  for (const auto dtype : kBothTypes) {
    for (const auto& [rows, columns] : kSizes) {
      const Tensor x = random_tensor({rows, columns}, dtype, 1), weight = random_tensor({columns}, dtype, 2);
      const Tensor dy = random_tensor({rows, columns}, dtype, 3);
      const auto [y, rstd] = norm(x, weight);
      const Tensor x64 = leaf(x), weight64 = leaf(weight);
      const Tensor y64 = reference(x64, weight64, kEps);
      expect_close(y, y64, "y");
      y64.backward(dy.to(at::kDouble));

      Tensor dx = random_tensor({rows, columns}, dtype, 4), dweight = random_tensor({columns}, dtype, 5);
      const Tensor dx_before = dx.clone(), dweight_before = dweight.clone();
      rms_norm_backward_input(dy, x, weight, rstd, dx);
      rms_norm_backward_weight(dy, x, rstd, dweight);
      expect_close(dx, dx_before.to(at::kDouble) + x64.grad(), "dx adds to what is there");
      expect_close(dweight, dweight_before.to(at::kDouble) + weight64.grad(), "dweight adds to what is there");
    }
  }
}

TEST(NormTest, GradientEqualsFiniteDifferences) {
  const int64_t columns = 13;
  const Tensor x = random_tensor({1, columns}, at::kDouble, 1), weight = random_tensor({columns}, at::kDouble, 2);
  const Tensor dy = random_tensor({1, columns}, at::kDouble, 3);
  Tensor dx = at::zeros_like(x);
  rms_norm_backward_input(dy, x, weight, norm(x, weight).rstd, dx);
  const double h = 1e-5;
  for (int64_t i = 0; i < columns; ++i) {
    const auto loss = [&](double shift) {
      const Tensor moved = x.clone();
      moved.mutable_data_ptr<double>()[i] += shift;
      return (norm(moved, weight).y * dy).sum().item<double>();
    };
    EXPECT_NEAR(dx.const_data_ptr<double>()[i], (loss(h) - loss(-h)) / (2 * h), 1e-8);
  }
}

TEST(NormTest, ThreadsDoNotShow) {
  const Tensor x = random_tensor({515, 333}, at::kFloat, 1), weight = random_tensor({333}, at::kFloat, 2);
  const Tensor dy = random_tensor({515, 333}, at::kFloat, 3);
  expect_threads_do_not_show([&] {
    const auto [y, rstd] = norm(x, weight);
    Tensor dx = dy.clone(), dweight = weight.clone();
    rms_norm_backward_input(dy, x, weight, rstd, dx);
    rms_norm_backward_weight(dy, x, rstd, dweight);
    return std::vector<Tensor>{y, rstd, dx, dweight};
  });
}

TEST(NormTest, OtherRowsDoNotShow) {
  const Tensor x = random_tensor({37, 101}, at::kFloat, 1), weight = random_tensor({101}, at::kFloat, 2);
  const Tensor dy = random_tensor({37, 101}, at::kFloat, 3);
  expect_other_rows_do_not_show(37, [&](int64_t first, int64_t count) {
    const Tensor part = x.narrow(0, first, count);
    const auto [y, rstd] = norm(part, weight);
    Tensor dx = at::zeros_like(part);
    rms_norm_backward_input(dy.narrow(0, first, count), part, weight, rstd, dx);
    return std::vector<Tensor>{y, rstd, dx};
  });
}

TEST(NormTest, WrongArgumentsAreNamed) {
  const Tensor x = random_tensor({3, 4}, at::kFloat, 1), weight = random_tensor({4}, at::kFloat, 2);
  const auto message = [&](const Tensor& x_TD, const Tensor& weight_D, Tensor y, Tensor rstd) -> std::string {
    try {
      rms_norm(x_TD, weight_D, 1e-5, y, rstd);
    } catch (const BugError& error) {
      return error.what();
    }
    return "accepted";
  };
  const Tensor rstd = at::empty({3}, at::kFloat);
  EXPECT_EQ(message(x, weight, at::empty({3, 5}, at::kFloat), rstd),
            "internal error: kernel rms_norm: y_TD is [3, 5], expected [3, 4]");
  EXPECT_EQ(message(x, weight.to(at::kDouble), at::empty_like(x), rstd),
            "internal error: kernel rms_norm: weight_D is Double but x_TD is Float");
  EXPECT_EQ(message(random_tensor({4, 3}, at::kFloat, 1).t(), weight, at::empty_like(x), rstd),
            "internal error: kernel rms_norm: x_TD is not contiguous");
  EXPECT_EQ(message(x.to(at::kHalf), weight, at::empty_like(x), rstd),
            "internal error: kernel rms_norm: x_TD is Half; only Float and Double are built");
  EXPECT_EQ(message(weight, weight, at::empty_like(x), rstd),
            "internal error: kernel rms_norm: x_TD is [4], expected 2 dimensions");
  EXPECT_EQ(message(x, Tensor(), at::empty_like(x), rstd), "internal error: kernel rms_norm: weight_D is undefined");
}

}  // namespace
}  // namespace conclave::kernels
