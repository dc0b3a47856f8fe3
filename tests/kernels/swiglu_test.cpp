// SPDX-License-Identifier: Apache-2.0
#include "kernels/swiglu.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/silu.h>
#include <gtest/gtest.h>

#include <array>

#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

// The width that crosses the loops' chunk of 1024 elements is there on purpose.
const std::vector<std::array<int64_t, 2>> kSizes = {{0, 4}, {1, 1}, {1, 5}, {16, 64}, {33, 63}, {7, 129}, {3, 2500}};

Tensor reference(const Tensor& h, const Tensor& scale) {
  const int64_t n = h.size(1) / 2;
  return scale.unsqueeze(1) * (at::silu(h.narrow(1, 0, n)) * h.narrow(1, n, n));
}

SwigluGradients backward(const Tensor& dout, const Tensor& h, const Tensor& scale) {
  SwigluGradients g{at::empty_like(h), at::empty({h.size(0)}, h.scalar_type()), at::empty_like(dout)};
  swiglu_backward(dout, h, scale, g);
  return g;
}

Tensor forward(const Tensor& h, const Tensor& scale) {
  Tensor out = at::empty({h.size(0), h.size(1) / 2}, h.scalar_type());
  swiglu(h, scale, out);
  return out;
}

TEST(SwigluTest, EqualsTheReferenceForwardAndBackward) {
  for (const auto dtype : kBothTypes) {
    for (const auto& [rows, n] : kSizes) {
      const Tensor h = random_tensor({rows, 2 * n}, dtype, 1) * 3, dout = random_tensor({rows, n}, dtype, 2);
      const Tensor scale = random_tensor({rows}, dtype, 3);
      const Tensor h64 = leaf(h), scale64 = leaf(scale);
      const Tensor out64 = reference(h64, scale64);
      const Tensor out = forward(h, scale);
      expect_close(out, out64, "out");
      out64.backward(dout.to(at::kDouble));
      const SwigluGradients g = backward(dout, h, scale);
      expect_close(g.dh_N2F, h64.grad(), "dh");
      expect_close(g.dscale_N, scale64.grad(), "dscale");
      expect_same_bits(g.out_NF, out, "the activations again");
    }
  }
}

TEST(SwigluTest, WithoutScaleItIsOne) {
  const Tensor h = random_tensor({9, 34}, at::kFloat, 1), dout = random_tensor({9, 17}, at::kFloat, 2);
  const Tensor ones = at::ones({9}, at::kFloat);
  expect_same_bits(forward(h, Tensor()), forward(h, ones), "out");
  const SwigluGradients expected = backward(dout, h, ones);
  SwigluGradients g{at::empty_like(h), {}, at::empty_like(dout)};
  swiglu_backward(dout, h, Tensor(), g);
  expect_same_bits(g.dh_N2F, expected.dh_N2F, "dh");
  expect_same_bits(g.out_NF, expected.out_NF, "out");
  EXPECT_FALSE(g.dscale_N.defined());
}

TEST(SwigluTest, GradientMayOverwriteItsInput) {
  const Tensor h = random_tensor({5, 2 * 1500}, at::kFloat, 1), dout = random_tensor({5, 1500}, at::kFloat, 2);
  const Tensor scale = random_tensor({5}, at::kFloat, 3);
  const SwigluGradients expected = backward(dout, h, scale);
  SwigluGradients g{h.clone(), at::empty({5}, at::kFloat), at::empty_like(dout)};
  const Tensor in_place = g.dh_N2F;
  swiglu_backward(dout, in_place, scale, g);
  expect_same_bits(in_place, expected.dh_N2F, "dh");
  expect_same_bits(g.dscale_N, expected.dscale_N, "dscale");
}

TEST(SwigluTest, GradientEqualsFiniteDifferences) {
  const Tensor h = random_tensor({1, 10}, at::kDouble, 1), dout = random_tensor({1, 5}, at::kDouble, 2);
  const Tensor scale = random_tensor({1}, at::kDouble, 3);
  const SwigluGradients g = backward(dout, h, scale);
  const double step = 1e-5;
  const auto slope = [&](const Tensor& moved, int64_t i) {
    double* value = moved.mutable_data_ptr<double>() + i;
    const double before = *value;
    *value = before + step;
    const double up = (forward(h, scale) * dout).sum().item<double>();
    *value = before - step;
    const double down = (forward(h, scale) * dout).sum().item<double>();
    *value = before;
    return (up - down) / (2 * step);
  };
  for (int64_t i = 0; i < 10; ++i) EXPECT_NEAR(g.dh_N2F.const_data_ptr<double>()[i], slope(h, i), 1e-9);
  EXPECT_NEAR(g.dscale_N.const_data_ptr<double>()[0], slope(scale, 0), 1e-9);
}

TEST(SwigluTest, LargeGatesNeitherOverflowNorVanish) {
  Tensor h = at::full({1, 4}, 1.0, at::kFloat);
  h.mutable_data_ptr<float>()[0] = 1000.0f;
  h.mutable_data_ptr<float>()[1] = -1000.0f;
  const Tensor out = forward(h, Tensor());
  EXPECT_EQ(out.const_data_ptr<float>()[0], 1000.0f);
  EXPECT_EQ(out.const_data_ptr<float>()[1], 0.0f);
  const Tensor dh = backward(at::ones({1, 2}, at::kFloat), h, Tensor()).dh_N2F;
  EXPECT_EQ(dh.const_data_ptr<float>()[0], 1.0f);
  EXPECT_EQ(dh.const_data_ptr<float>()[1], 0.0f);
}

TEST(SwigluTest, ThreadsAndOtherRowsDoNotShow) {
  const Tensor h = random_tensor({61, 2 * 1030}, at::kFloat, 1), dout = random_tensor({61, 1030}, at::kFloat, 2);
  const Tensor scale = random_tensor({61}, at::kFloat, 3);
  const auto run = [&](int64_t first, int64_t count) {
    const Tensor part = h.narrow(0, first, count), factor = scale.narrow(0, first, count);
    const SwigluGradients g = backward(dout.narrow(0, first, count), part, factor);
    return std::vector<Tensor>{forward(part, factor), g.dh_N2F, g.dscale_N, g.out_NF};
  };
  expect_threads_do_not_show([&] { return run(0, 61); });
  expect_other_rows_do_not_show(61, run);
}

}  // namespace
}  // namespace conclave::kernels
