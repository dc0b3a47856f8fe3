// SPDX-License-Identifier: Apache-2.0
// SparseMixer-v2 (methods.md 1.16, 8).
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "kernels/tensor_checks.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::Routed;
using kernels::random_tensor;

RouterConfig mixer(double epsilon) {
  RouterConfig config{.type = "sparsemixer"};
  config.sparsemixer.emplace().epsilon = epsilon;
  return config;
}

Tensor equal_rows(int64_t tokens, const std::vector<double>& logits) {
  return at::tensor(logits, at::kDouble).expand({tokens, static_cast<int64_t>(logits.size())}).contiguous();
}

// Softmax over the experts in reach.
std::vector<double> probabilities(const std::vector<double>& logits, const std::vector<bool>& in_reach) {
  std::vector<double> p;
  double sum = 0;
  for (size_t e = 0; e < logits.size(); ++e) p.push_back(in_reach[e] ? std::exp(logits[e]) : 0.0), sum += p.back();
  for (double& value : p) value /= sum;
  return p;
}

// Reach 1 of 2.0: the last one, (2 + 3) / 3 away, is left out.
const std::vector<double> kLogits{1.7, 2.0, 1.2, -3.0};
const std::vector<double> kP = probabilities(kLogits, {true, true, true, false});

TEST(SparseMixer, TheMeanGradientIsTheSamplingGradientOfALinearLoss) {
  const int64_t T = 60000, E = 4;
  const std::vector<double> v{0.7, -1.1, 2.0, 5.0};
  Routed setup(mixer(0.5), {.experts = E, .top_k = 1}, T);
  const Choice choice = setup.route(equal_rows(T, kLogits));
  std::vector<double> arrived;
  for (const int32_t id : choice.picks.ids_C) arrived.push_back(v[id]);
  const Tensor dz = setup.router->backward(choice, {.weights_C = at::tensor(arrived, at::kDouble)});
  for (int64_t j = 0; j < E; ++j) {
    double expected = 0;
    for (int64_t i = 0; i < E; ++i) expected += kP[i] * kP[i] * v[i] * ((i == j ? 1.0 : 0.0) - kP[j]);
    const Tensor column = dz.select(1, j);
    const double error = column.std().item<double>() / std::sqrt(static_cast<double>(T));
    EXPECT_NEAR(column.mean().item<double>(), expected, 4.5 * error + 1e-15) << j;
  }
  EXPECT_EQ(dz.select(1, 3).abs().max().item<double>(), 0.0) << "who is out of reach gets no gradient";
}

TEST(SparseMixer, MultipliersIntegrateACubicExactly) {
  const int64_t T = 40000;
  Routed setup(mixer(0.5), {.experts = 4, .top_k = 1}, T);
  const Choice choice = setup.route(equal_rows(T, kLogits));
  std::vector<int64_t> drawn(4, 0);
  int64_t others = 0, whole = 0;
  double third = 0, one = 0;
  for (int64_t t = 0; t < T; ++t) {
    const int32_t id = choice.picks.ids_C[t];
    ++drawn[id];
    const double u = choice.weights_C[t].item<double>() / choice.raw_C[t].item<double>();
    ASSERT_NEAR(choice.raw_C[t].item<double>(), kP[id], 1e-14);
    if (id == 1) {
      ASSERT_EQ(u, 1.0) << "the largest";
      continue;
    }
    ++others;
    whole += u > 0.5;
    (u > 0.5 ? one : third) = u;
  }
  for (size_t e = 0; e < 4; ++e)
    EXPECT_NEAR(drawn[e] / static_cast<double>(T), kP[e], 4.5 * std::sqrt(kP[e] * (1 - kP[e]) / T)) << e;
  const double n = static_cast<double>(others), share = static_cast<double>(whole) / n;
  EXPECT_NEAR(share, 0.25, 4.5 * std::sqrt(0.25 * 0.75 / n));
  EXPECT_NEAR(share + (1 - share) / 3, 0.5, 3 * std::sqrt(0.25 * 0.75 / n)) << "the mean multiplier";
  // l(f) = f - 2 f^2 + 0.7 f^3: E[l'(u f) f] = l(f) - l(0).
  for (const double f : {0.3, 1.9, -2.4}) {
    const auto slope = [](double x) { return 1 - 4 * x + 2.1 * x * x; };
    EXPECT_NEAR(0.75 * slope(third * f) * f + 0.25 * slope(one * f) * f, f - 2 * f * f + 0.7 * f * f * f, 1e-12);
  }
}

TEST(SparseMixer, AnEvaluationTakesTheLargest) {
  Routed setup(mixer(0.5), {.experts = 6, .top_k = 2}, 30);
  setup.moment.training = false;
  const Tensor logits = random_tensor({30, 6}, at::kDouble, 3);
  const Choice choice = setup.route(logits);
  for (int64_t t = 0; t < 30; ++t) {
    EXPECT_EQ(choice.picks.ids_C[2 * t], logits[t].argmax().item<int64_t>());
    Tensor rest = logits[t].clone();
    rest[choice.picks.ids_C[2 * t]] = -1e9;
    EXPECT_EQ(choice.picks.ids_C[2 * t + 1], rest.argmax().item<int64_t>());
  }
  kernels::expect_same_bits(choice.weights_C, choice.raw_C, "multipliers");
}

TEST(SparseMixer, TheSecondDrawIsOverWhatTheFirstLeft) {
  const int64_t T = 40000;
  Routed setup(mixer(0.5), {.experts = 4, .top_k = 2}, T);
  const Choice choice = setup.route(equal_rows(T, kLogits));
  const auto second = probabilities(kLogits, {true, false, true, false});  // after expert 1, reach 1 of 1.7
  std::vector<double> drawn(4, 0.0);
  double firsts = 0;
  for (int64_t t = 0; t < T; ++t) {
    ASSERT_NE(choice.picks.ids_C[2 * t], choice.picks.ids_C[2 * t + 1]);
    if (choice.picks.ids_C[2 * t] != 1) continue;
    ++firsts;
    ++drawn[choice.picks.ids_C[2 * t + 1]];
  }
  for (size_t e = 0; e < 4; ++e)
    EXPECT_NEAR(drawn[e] / firsts, second[e], 4.5 * std::sqrt(second[e] * (1 - second[e]) / firsts)) << e;
}

TEST(SparseMixer, LogitsOfZeroAndBelowAreSafe) {
  const auto drawn = [&](const std::vector<double>& logits, double epsilon = 1e-2) {
    Routed setup(mixer(epsilon), {.experts = 3, .top_k = 1}, 2000);
    const Choice choice = setup.route(equal_rows(2000, logits));
    EXPECT_TRUE(choice.weights_C.isfinite().all().item<bool>());
    return std::set<int32_t>(choice.picks.ids_C.begin(), choice.picks.ids_C.end());
  };
  EXPECT_EQ(drawn({0, 0, 0}), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(drawn({-1, -1.01, -5}), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(drawn({3, 2.95, 2.9}), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(drawn({1, -2, -1}, 0.8), (std::set<int32_t>{0, 1})) << "3 / 2 is in reach of 1.6, 2 / 1 is not";
}

TEST(SparseMixer, DrawsByTheTokenNotByItsPlace) {
  Routed here(mixer(0.5), {.experts = 4, .top_k = 2}, 100), moved = here.moved_by(1);
  const Tensor logits = equal_rows(100, kLogits);
  const Choice at_home = here.route(logits), away = moved.route(logits);
  for (int64_t i = 0; i + 2 < 200; ++i) {
    ASSERT_EQ(away.picks.ids_C[i], at_home.picks.ids_C[i + 2]);
    ASSERT_EQ(away.weights_C[i].item<double>(), at_home.weights_C[i + 2].item<double>());
  }
  EXPECT_NE(away.picks, at_home.picks);
}

}  // namespace
}  // namespace conclave::moe
