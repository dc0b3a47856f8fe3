// SPDX-License-Identifier: Apache-2.0
// GShard's random second expert, and Switch's jitter (methods.md 8).
#include <ATen/ops/arange.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/tensor_checks.h"
#include "support/moe_layer.h"
#include "support/moe_methods.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using conclave::testing::Routed;
using kernels::random_tensor;

TEST(GshardRandomSecond, IsKeptAsOftenAsItsWeightSays) {
  const int64_t T = 6000;
  for (const double second : {0.05, 0.15, 0.4}) {
    Routed setup({.norm_topk_prob = true, .second = "random"}, {.experts = 4, .top_k = 2}, T);
    Tensor logits = at::full({T, 4}, -30.0, at::kDouble);
    logits.select(1, 1).fill_(std::log(1 - second)), logits.select(1, 3).fill_(std::log(second));
    const Choice choice = setup.route(logits);
    ASSERT_EQ(choice.declined_C.size(), static_cast<size_t>(2 * T));
    const auto declined = std::accumulate(choice.declined_C.begin(), choice.declined_C.end(), int64_t{0});
    const double p = std::min(1.0, second / 0.2), kept = 1 - static_cast<double>(declined) / T;
    EXPECT_NEAR(kept, p, 4.5 * std::sqrt(p * (1 - p) / T) + 1e-12);
    for (int64_t t = 0; t < T; ++t) {
      ASSERT_FALSE(choice.declined_C[2 * t]) << "a first expert is always used";
      ASSERT_NEAR(choice.weights_C[2 * t].item<double>(), 1 - second, 1e-12) << "and keeps its weight";
    }
    Routed scaled({.norm_topk_prob = true, .routed_scaling_factor = 2.5, .second = "random"}, setup.shape, T);
    EXPECT_EQ(scaled.route(logits).declined_C, choice.declined_C) << "a factor on all weights changes nothing";
    setup.moment.training = false;
    EXPECT_TRUE(setup.route(logits).declined_C.empty()) << "an evaluation draws nothing";
  }
}

TEST(GshardRandomSecond, WhatIsDeclinedIsNeitherSentNorCountedAsSelected) {
  MoeConfig config = conclave::testing::router_methods()[0].config();
  MoeLayer layer(config, {.experts = 8, .top_k = 2}, at::kDouble);
  const Batch batch = random_batch(1, 60, 23, 1);
  const Tensor x = random_tensor({60, 6}, at::kDouble, 2);
  const auto result = layer.run(batch, x, at::zeros_like(x));
  const auto& declined = result.decision.choice.declined_C;
  const auto count = std::accumulate(declined.begin(), declined.end(), int64_t{0});
  EXPECT_GT(count, 0);
  EXPECT_EQ(result.decision.routing.pairs(), 120 - count);
  const auto& selected = result.decision.statistics.selected_E;
  EXPECT_EQ(std::accumulate(selected.begin(), selected.end(), int64_t{0}), 120 - count);
  EXPECT_EQ(result.decision.statistics.dropped, 0);
}

TEST(GshardRandomSecond, IsDrawnByTheTokenNotByItsPlace) {
  const int64_t T = 200;
  Routed here({.norm_topk_prob = true, .second = "random"}, {.experts = 4, .top_k = 2}, T), moved = here.moved_by(1);
  const Tensor logits = at::zeros({T, 4}, at::kDouble) - at::arange(4, at::kDouble) * 3.0;  // the second weighs 0.05
  const auto at_home = here.route(logits).declined_C, away = moved.route(logits).declined_C;
  for (int64_t t = 0; t + 1 < T; ++t) ASSERT_EQ(away[2 * t + 1], at_home[2 * t + 3]) << t;
  EXPECT_NE(away, at_home);
}

TEST(Jitter, GradientOfTheInputGoesThroughTheFactors) {
  MoeConfig config;
  config.router.jitter = 0.3;
  const int64_t T = 6;
  MoeLayer layer(config, {.experts = 4, .top_k = 4}, at::kDouble);
  const Batch batch = random_batch(1, T, 23, 1);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2), dy = random_tensor({T, 6}, at::kDouble, 3);
  const Tensor dx = layer.run(batch, x, dy).dx;
  const auto objective = [&](const Tensor& at) { return (layer.run(batch, at, dy).y * dy).sum().item<double>(); };
  for (int64_t i = 0; i < x.numel(); ++i) {
    Tensor up = x.clone(), down = x.clone();
    up.view({-1})[i] += 1e-6, down.view({-1})[i] -= 1e-6;
    EXPECT_NEAR(dx.view({-1})[i].item<double>(), (objective(up) - objective(down)) / 2e-6, 1e-7);
  }
}

TEST(Jitter, FactorsAreUniformForEachTokenAndFeature) {
  constexpr int64_t T = 3000, D = 6;
  constexpr double kReach = 0.3;
  MoeConfig config;
  config.router.jitter = kReach;
  config.balance.losses = {{.type = LossType::kZ, .coef = 0.0}};  // reads logits, which are then kept
  MoeLayer layer(config, {.experts = D, .top_k = 1, .width = D}, at::kDouble);
  layer.router().copy_(at::eye(D, at::kDouble));
  const Tensor x = at::ones({T, D}, at::kDouble);
  const Tensor u = layer.run(random_batch(1, T, 23, 1), x, at::zeros_like(x)).decision.choice.logits_TE;
  const double* begin = u.data_ptr<double>();
  std::vector<double> drawn(begin, begin + T * D);
  double products = 0;  // of neighbours in a row: each feature draws its own
  for (int64_t i = 0; i < T * D; ++i)
    if (i % D != 0) products += (drawn[i] - 1) * (drawn[i - 1] - 1);
  EXPECT_LT(std::abs(products), 4.5 * kReach * kReach / 3 * std::sqrt(T * (D - 1)));
  std::sort(drawn.begin(), drawn.end());
  EXPECT_EQ(std::adjacent_find(drawn.begin(), drawn.end()), drawn.end()) << "two tokens or features share a draw";
  EXPECT_GE(drawn.front(), 1 - kReach);
  EXPECT_LE(drawn.back(), 1 + kReach);
  double distance = 0;  // Kolmogorov's, from the uniform law
  for (int64_t i = 0; i < T * D; ++i)
    distance = std::max(distance, std::abs((drawn[i] - 1 + kReach) / (2 * kReach) - (i + 0.5) / (T * D)));
  EXPECT_LT(distance * std::sqrt(T * D), 1.95);
}

TEST(Jitter, ChangesWhatTheRouterSeesInTrainingAndNothingElse) {
  MoeConfig plain = conclave::testing::router_methods()[3].config(), jittered = plain;
  ASSERT_GT(jittered.router.jitter, 0);
  plain.router.jitter = 0;
  const testing::LayerSize size{.experts = 8, .top_k = 8};  // all experts see all tokens
  const Batch batch = random_batch(1, 20, 23, 1);
  const Tensor x = random_tensor({20, 6}, at::kDouble, 2), dy = random_tensor({20, 6}, at::kDouble, 3);
  const auto without = MoeLayer(plain, size, at::kDouble).run(batch, x, dy);
  const auto with = MoeLayer(jittered, size, at::kDouble).run(batch, x, dy);
  kernels::expect_same_bits(with.rows, without.rows, "what experts see");
  const Tensor ratio = with.decision.choice.probs_TE - without.decision.choice.probs_TE;
  EXPECT_GT(ratio.abs().max().item<double>(), 1e-3);
  kernels::expect_same_bits(MoeLayer(jittered, size, at::kDouble).run(batch, x, {}).y,
                            MoeLayer(plain, size, at::kDouble).run(batch, x, {}).y, "an evaluation");
}

}  // namespace
}  // namespace conclave::moe
