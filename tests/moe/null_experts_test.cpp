// SPDX-License-Identifier: Apache-2.0
// Null experts with a budget (methods.md 7.1).
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::decided;
using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using conclave::testing::Routed;
using kernels::random_tensor;

constexpr int64_t kTrue = 6, kNulls = 4;

RouterConfig nulls(std::optional<double> target = {}, double rate = 1e-3) {
  RouterConfig config{.type = "null_experts"};
  config.null_experts = {.count = kNulls, .target_k = target, .update_rate = rate};
  return config;
}

TEST(NullExperts, WeightsAreDividedOverTheTrueOnes) {
  Routed setup(nulls(), {.experts = kTrue, .top_k = 4}, 40);
  const Choice choice = setup.route(random_tensor({40, kTrue + kNulls}, at::kDouble, 1));
  int64_t declined = 0;
  for (int64_t t = 0; t < 40; ++t) {
    double sum = 0, scores = 0;
    for (int32_t i = 4 * static_cast<int32_t>(t); i < 4 * t + 4; ++i) {
      const bool null = choice.picks.ids_C[i] >= kTrue;
      EXPECT_EQ(choice.declined_C[i], null);
      declined += null;
      sum += choice.weights_C[i].item<double>();
      scores += null ? 0.0 : choice.probs_TE[t][choice.picks.ids_C[i]].item<double>();
    }
    EXPECT_NEAR(sum, scores > 0 ? 1.0 : 0.0, 1e-14);
    for (int32_t i = 4 * static_cast<int32_t>(t); i < 4 * t + 4; ++i) {
      const double own = choice.probs_TE[t][choice.picks.ids_C[i]].item<double>();
      EXPECT_NEAR(choice.weights_C[i].item<double>(), choice.declined_C[i] ? 0.0 : own / scores, 1e-14);
    }
  }
  EXPECT_GT(declined, 20);
}

TEST(NullExperts, ATokenOfNullOnesAloneGetsNothingAndSendsNothing) {
  MoeConfig config;
  config.router = nulls(1.0);
  MoeLayer layer(config, {.experts = kTrue, .top_k = 3}, at::kDouble);
  layer.state().values<float>("null_bias")[0] = 10;
  const Batch batch = random_batch(1, 20, 23, 1);
  const Tensor x = random_tensor({20, 6}, at::kDouble, 2), dy = random_tensor({20, 6}, at::kDouble, 3);
  const auto result = layer.run(batch, x, dy);
  EXPECT_EQ(result.decision.routing.pairs(), 0);
  EXPECT_EQ(result.y.abs().max().item<double>(), 0.0);
  EXPECT_EQ(result.dx.abs().max().item<double>(), 0.0);
  EXPECT_EQ(result.decision.statistics.dropped, 0);
}

TEST(NullExperts, TheBiasEntersTheChoiceAlone) {
  Routed setup(nulls(1.5), {.experts = kTrue, .top_k = 4}, 40);
  const Tensor scores = random_tensor({40, kTrue + kNulls}, at::kDouble, 1);
  const Choice before = setup.route(scores);
  setup.state.values<float>("null_bias")[0] = 0.05f;
  const Choice after = setup.route(scores);
  EXPECT_NE(after.picks, before.picks);
  EXPECT_EQ(after.counted(), before.counted()) << "losses count by score alone";
  kernels::expect_same_bits(after.probs_TE, before.probs_TE, "scores");
}

TEST(NullExperts, TheBudgetIsReachedAndKept) {
  // One batch, so that there is one bias at which its mean is the target: of changing batches the rule finds the
  // median.
  constexpr int64_t kTokens = 500;
  const Tensor scores = random_tensor({kTokens, kTrue + kNulls}, at::kDouble, 1000);
  for (const double target : {0.7, 1.5, 2.9}) {
    Routed setup(nulls(target, 3e-4), {.experts = kTrue, .top_k = 4}, kTokens);
    double mean = 0;
    constexpr int kSteps = 1200, kLast = 200;
    for (int step = 0; step < kSteps; ++step) {
      const Decision d = decided(setup, scores);
      const auto& selected = d.statistics.selected_E;
      const auto used = std::accumulate(selected.begin(), selected.end(), int64_t{0});
      if (step >= kSteps - kLast) mean += static_cast<double>(used) / kTokens / kLast;
      const float before = setup.state.values<float>("null_bias")[0];
      setup.router->end_step({.selected_E = selected, .tokens = kTokens}, setup.state);
      const double excess = static_cast<double>(used) - target * kTokens;
      const float step_of_b = excess > 0 ? 3e-4f : excess < 0 ? -3e-4f : 0.0f;
      ASSERT_EQ(setup.state.values<float>("null_bias")[0], before + step_of_b) << "one step up, down or none";
    }
    EXPECT_NEAR(mean / target, 1.0, 0.01) << target;
  }
}

TEST(NullExperts, ASwitchLossSeesThemAsOnePool) {
  // One token for each way to use true expert t and, besides, null experts unevenly: the same loss.
  const int64_t T = kTrue * kNulls;
  Routed setup(nulls(), {.experts = kTrue, .top_k = 1}, T + 2 * T * kNulls / kTrue);
  const int64_t all = setup.batch.tokens_count();
  Tensor uneven = at::zeros({all, kTrue + kNulls}, at::kDouble), even = uneven.clone();
  for (int64_t t = 0; t < all; ++t) {
    const int64_t own = t < T ? t % kTrue : kTrue;
    uneven[t][own] = 2;
    even[t][t < T ? own : kTrue + t % kNulls] = 2;
  }
  const Balancer balancer(BalanceConfig{.losses = {{.coef = 1.0}}});
  const ModelState state{{{}}, {}};
  const auto value = [&](const Tensor& scores) {
    const Decision d = decided(setup, scores);
    const Decision* layer = &d;
    return balancer.value({{&layer, 1}, state, setup.batch}, 0, 0);
  };
  EXPECT_NEAR(value(uneven), value(even), 1e-12);
  EXPECT_GT(value(even), 1.0) << "scores agree with the choices";
}

}  // namespace
}  // namespace conclave::moe
