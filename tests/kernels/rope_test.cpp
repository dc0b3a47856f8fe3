// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

// transformers: x * cos + rotate_half(x) * sin, with cos and sin repeated over both halves.
Tensor reference(const Tensor& x_TND, const std::vector<int32_t>& positions, double theta) {
  const int64_t half = x_TND.size(2) / 2;
  const Tensor angles = at::empty({x_TND.size(0), 1, half}, at::kDouble);
  for (int64_t t = 0; t < x_TND.size(0); ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double exponent = -static_cast<double>(i) / static_cast<double>(half);
      angles.mutable_data_ptr<double>()[t * half + i] = positions[t] * std::pow(theta, exponent);
    }
  }
  const Tensor cos = at::cat({angles, angles}, -1).cos(), sin = at::cat({angles, angles}, -1).sin();
  const Tensor rotated = at::cat({-x_TND.narrow(2, half, half), x_TND.narrow(2, 0, half)}, -1);
  return x_TND * cos + rotated * sin;
}

TEST(RopeTest, EqualsTheReferenceForwardAndBackward) {
  for (const auto dtype : kBothTypes) {
    for (const auto& [tokens, heads, head_dim] :
         std::vector<std::array<int64_t, 3>>{{0, 2, 4}, {1, 1, 2}, {7, 3, 6}, {33, 2, 64}, {5, 4, 34}}) {
      const RopeTable table = rope_table(100, head_dim, 10000.0, dtype);
      const auto positions = random_indices(tokens, 0, 100, 9);
      const Tensor x = random_tensor({tokens, heads, head_dim}, dtype, 1);
      const Tensor dy = random_tensor({tokens, heads, head_dim}, dtype, 2);
      Tensor y = x.clone(), dx = dy.clone();
      rope(y, positions, table, false);
      rope(dx, positions, table, true);
      const Tensor x64 = leaf(x);
      const Tensor y64 = reference(x64, positions, 10000.0);
      expect_close(y, y64, "rotated");
      y64.backward(dy.to(at::kDouble));
      expect_close(dx, x64.grad(), "gradient");
    }
  }
}

TEST(RopeTest, InverseUndoesAndPositionZeroChangesNothing) {
  const RopeTable table = rope_table(64, 16, 500000.0, at::kDouble);
  const auto positions = random_indices(20, 0, 64, 3);
  const Tensor x = random_tensor({20, 2, 16}, at::kDouble, 1);
  Tensor y = x.clone();
  rope(y, positions, table, false);
  rope(y, positions, table, true);
  expect_close(y, x, "there and back");
  rope(y = x.clone(), std::vector<int32_t>(20, 0), table, false);
  expect_same_bits(y, x, "position 0");
}

TEST(RopeTest, ThreadsAndOtherRowsDoNotShow) {
  const RopeTable table = rope_table(512, 48, 10000.0, at::kFloat);
  const auto positions = random_indices(300, 0, 512, 3);
  const Tensor x = random_tensor({300, 4, 48}, at::kFloat, 1);
  const auto rotated = [&](int64_t first, int64_t count) {
    Tensor y = x.narrow(0, first, count).clone();
    rope(y, std::span(positions).subspan(first, count), table, false);
    return std::vector<Tensor>{y};
  };
  expect_threads_do_not_show([&] { return rotated(0, 300); });
  expect_other_rows_do_not_show(300, rotated);
}

TEST(RopeTest, PositionsBeyondTheTableAreRefused) {
  const RopeTable table = rope_table(8, 4, 10000.0, at::kFloat);
  Tensor x = random_tensor({1, 1, 4}, at::kFloat, 1);
  EXPECT_THROW(rope(x, std::vector<int32_t>{8}, table, false), BugError);
  EXPECT_THROW(rope(x, std::vector<int32_t>{-1}, table, false), BugError);
  EXPECT_THROW(rope(x, std::vector<int32_t>{1, 2}, table, false), BugError);
  EXPECT_THROW(rope_table(8, 3, 10000.0, at::kFloat), BugError);
}

}  // namespace
}  // namespace conclave::kernels
