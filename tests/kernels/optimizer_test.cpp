// SPDX-License-Identifier: Apache-2.0
#include "kernels/optimizer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

struct State {
  Tensor parameter, m, v;
};

State state(int64_t n, at::ScalarType dtype) {
  return {random_tensor({n}, dtype, 1), random_tensor({n}, dtype, 2) * 0.1,
          random_tensor({n}, dtype, 3).square() * 0.01};
}

// torch.optim.AdamW, one step, in double.
State reference(const State& s, const Tensor& gradient, const AdamWStep& step) {
  const Tensor g = gradient.to(at::kDouble) * step.grad_scale;
  const Tensor m = s.m.to(at::kDouble) * step.beta1 + g * (1 - step.beta1);
  const Tensor v = s.v.to(at::kDouble) * step.beta2 + g * g * (1 - step.beta2);
  const Tensor denominator = (v / (1 - std::pow(step.beta2, step.step))).sqrt() + step.eps;
  const Tensor decayed = s.parameter.to(at::kDouble) * (1 - step.lr * step.weight_decay);
  return {decayed - step.lr / (1 - std::pow(step.beta1, step.step)) * m / denominator, m, v};
}

TEST(OptimizerTest, AdamwEqualsTheReference) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t n : {0, 1, 17, 1000, 100001}) {
      for (const int64_t number : {1, 10, 1000}) {
        const AdamWStep step{.lr = 0.01,
                             .beta1 = 0.9,
                             .beta2 = 0.95,
                             .eps = 1e-8,
                             .weight_decay = 0.1,
                             .step = number,
                             .grad_scale = 0.125};
        State s = state(n, dtype);
        const Tensor gradient = random_tensor({n}, dtype, 4);
        const State expected = reference(s, gradient, step);
        adamw(s.parameter, s.m, s.v, gradient, step);
        expect_close(s.parameter, expected.parameter, "parameter");
        expect_close(s.m, expected.m, "m");
        expect_close(s.v, expected.v, "v");
      }
    }
  }
}

TEST(OptimizerTest, AdamwFromZeroMovesByTheLearningRate) {
  State s{at::zeros({5}, at::kDouble), at::zeros({5}, at::kDouble), at::zeros({5}, at::kDouble)};
  const Tensor gradient = random_tensor({5}, at::kDouble, 1);
  adamw(s.parameter, s.m, s.v, gradient, {.lr = 0.5, .eps = 0.0, .step = 1});
  expect_close(s.parameter, gradient.sign() * -0.5, "first step");
  EXPECT_THROW(adamw(s.parameter, s.m, s.v, gradient, {.lr = 0.5, .step = 0}), BugError);
}

TEST(OptimizerTest, AdamwDoesNotDependOnThreadsOrOnWhereARangeIsCut) {
  const int64_t n = 70001;
  const Tensor gradient = random_tensor({n}, at::kFloat, 4);
  const AdamWStep step{.lr = 0.01, .weight_decay = 0.1, .step = 3};
  const auto run = [&](int64_t first, int64_t count) {
    const State s = state(n, at::kFloat);
    Tensor p = s.parameter.narrow(0, first, count), m = s.m.narrow(0, first, count), v = s.v.narrow(0, first, count);
    adamw(p, m, v, gradient.narrow(0, first, count), step);
    return std::vector<Tensor>{p, m, v};
  };
  expect_threads_do_not_show([&] { return run(0, n); });
  const auto whole = run(0, n);
  for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {1, 15}, {63, 999}, {69999, 2}}) {
    const auto part = run(first, count);
    for (size_t i = 0; i < 3; ++i) expect_same_bits(part[i], whole[i].narrow(0, first, count), "cut range");
  }
}

TEST(OptimizerTest, SumOfSquaresEqualsTheReferenceAndHidesThreads) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{1000}, kNormSlice, kNormSlice + 1, 5 * kNormSlice + 77}) {
      const Tensor x = random_tensor({n}, dtype, 1);
      const double expected = x.to(at::kDouble).square().sum().item<double>();
      EXPECT_NEAR(sum_of_squares(x), expected, 1e-12 * expected);
    }
    const Tensor x = random_tensor({7 * kNormSlice + 5}, dtype, 2);
    expect_threads_do_not_show([&] {
      const Tensor sum = at::empty({1}, at::kDouble);
      *sum.mutable_data_ptr<double>() = sum_of_squares(x);
      return std::vector<Tensor>{sum};
    });
  }
}

TEST(OptimizerTest, SumOfSquaresIsATreeOverSlicesWhereverShardsAreCut) {
  const Tensor x = random_tensor({8 * kNormSlice - 3}, at::kFloat, 1);
  const std::vector<double> s = slice_sums_of_squares(x);
  ASSERT_EQ(s.size(), 8u);
  EXPECT_EQ(sum_of_squares(x), ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7])));
  std::vector<double> sharded;
  for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 1}, {4, 4}}) {
    const int64_t begin = first * kNormSlice, end = std::min((first + count) * kNormSlice, x.numel());
    const auto part = slice_sums_of_squares(x.narrow(0, begin, end - begin));
    sharded.insert(sharded.end(), part.begin(), part.end());
  }
  EXPECT_EQ(sharded, s);
}

TEST(OptimizerTest, FirstNonFiniteFindsTheFirst) {
  for (const auto dtype : kBothTypes) {
    const Tensor x = random_tensor({3 * kNormSlice + 9}, dtype, 1);
    EXPECT_EQ(first_non_finite(x), -1);
    for (const int64_t at : {3 * kNormSlice + 8, kNormSlice + 1, int64_t{0}}) {
      x[at] = at % 2 == 0 ? NAN : -INFINITY;
      EXPECT_EQ(first_non_finite(x), at);
    }
  }
  EXPECT_EQ(first_non_finite(at::zeros({0}, at::kFloat)), -1);
  const Tensor largest = at::zeros({4}, at::kFloat).fill_(3.402823466e38);
  EXPECT_EQ(first_non_finite(largest), -1);
}

TEST(OptimizerTest, FillNormalGivesAShardWhatTheWholeTensorHolds) {
  const Random random(5, Purpose::kInit, "layers.0.weight");
  Tensor whole = at::empty({30, 40}, at::kFloat), shard = at::empty({7, 40}, at::kFloat);
  expect_threads_do_not_show([&] {
    fill_normal(whole, random, 0, 0.02);
    return std::vector<Tensor>{whole.clone()};
  });
  fill_normal(shard, random, 11 * 40, 0.02);
  expect_same_bits(shard, whole.narrow(0, 11, 7), "rows 11 to 17");
  EXPECT_EQ(whole[3][4].item<float>(), static_cast<float>(random.normal(3 * 40 + 4) * 0.02));
}

}  // namespace
}  // namespace conclave::kernels
