// SPDX-License-Identifier: Apache-2.0
// ReMoE's router and the controller of its l1 loss (methods.md 8).
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::decided;
using conclave::testing::LayerResult;
using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using conclave::testing::Routed;
using kernels::random_tensor;

TEST(ReluRouter, AnyNumberOfExpertsAndNoneForNegativeLogits) {
  Routed setup({.type = "relu"}, {.experts = 8, .top_k = 2}, 20);
  Tensor logits = random_tensor({20, 8}, at::kDouble, 1);
  logits[3] = -at::ones({8}, at::kDouble);
  const Choice choice = setup.route(logits);
  for (int64_t t = 0; t < 20; ++t) EXPECT_EQ(std::ssize(choice.picks.of(t)), (logits[t] > 0).sum().item<int64_t>());
  const Choice scaled = setup.route(logits * 3.0);
  EXPECT_EQ(scaled.picks, choice.picks);
  EXPECT_LT((scaled.weights_C - 3.0 * choice.weights_C).abs().max().item<double>(), 1e-14);
}

TEST(ReluRouter, ATokenWithoutExpertsGetsNothing) {
  MoeConfig config;
  config.router.type = "relu";
  MoeLayer layer(config, {.experts = 8, .top_k = 2}, at::kDouble);
  const Tensor x = at::zeros({5, 6}, at::kDouble);
  const auto result = layer.run(random_batch(1, 5, 23, 1), x, at::ones_like(x));
  EXPECT_EQ(result.y.abs().max().item<double>(), 0.0);
  EXPECT_EQ(result.decision.routing.pairs(), 0) << "a logit of zero is none";
}

// Logits of expert 0 are `logit` for every token, those of the others −1.
LayerResult at_logit(double logit, const Tensor& dy) {
  MoeConfig config;
  config.router.type = "relu";
  MoeLayer layer(config, {.experts = 4, .top_k = 2}, at::kDouble);
  layer.router().zero_();
  layer.router().select(1, 0).fill_(-1);
  layer.router().select(1, 0)[0] = logit;
  Tensor x = random_tensor({5, 6}, at::kDouble, 2);
  x.select(1, 0).fill_(1);
  return layer.run(random_batch(1, 5, 23, 1), x, dy);
}

TEST(ReluRouter, OutputsAreContinuousWhereAnExpertStarts) {
  const Tensor dy = random_tensor({5, 6}, at::kDouble, 3);
  const LayerResult on = at_logit(1e-9, dy), off = at_logit(-1e-9, dy);
  EXPECT_LT((on.y - off.y).abs().max().item<double>(), 1e-8);
  EXPECT_EQ(off.drouter.abs().max().item<double>(), 0.0);
  EXPECT_EQ(off.dx.abs().max().item<double>(), 0.0);
  EXPECT_EQ(off.y.abs().max().item<double>(), 0.0) << "no expert, no output";
  // On the side where the expert is used its weight has the slope that finite differences see.
  const double h = 1e-6,
               slope = ((at_logit(1e-3 + h, dy).y - at_logit(1e-3 - h, dy).y) * dy).sum().item<double>() / (2 * h);
  EXPECT_NEAR(at_logit(1e-3, dy).drouter[0][0].item<double>(), slope, 1e-7 * std::max(1.0, std::abs(slope)));
  EXPECT_EQ(at_logit(-1e-3, dy).drouter.abs().max().item<double>(), 0.0);
}

TEST(L1Loss, GradientIsTheCoefficientTimesTheShareOverLayersAndTokens) {
  const int64_t T = 12, E = 8, k = 2, layers = 2;
  for (const bool balance : {true, false}) {
    Routed setup({.type = "relu"}, {.experts = E, .top_k = k}, T);
    setup.batch.segment_ids[T - 1] = -1, setup.batch.loss_mask[T - 1] = 0;
    BalanceConfig config;
    config.losses = {{.type = LossType::kL1, .l1 = L1Config{.balance = balance}}};
    const Balancer balancer(config);
    ModelState state{{setup.state, setup.state}, {}};
    const std::vector<int64_t> experts{E, E};
    balancer.declare(experts, state);
    state.shared.values<int64_t>("l1.exponent")[0] = 3;
    const std::vector<Decision> decisions{decided(setup, random_tensor({T, E}, at::kDouble, 4)),
                                          decided(setup, random_tensor({T, E}, at::kDouble, 5))};
    const std::vector<const Decision*> all{&decisions[0], &decisions[1]};
    for (int layer = 0; layer < layers; ++layer) {
      ChoiceGradients gradients;
      balancer.add_gradient({all, state, setup.batch}, layer, gradients);
      const Picks& picks = decisions[layer].choice.picks;
      std::vector<double> uses(E, 0.0);
      for (int64_t t = 0; t + 1 < T; ++t)
        for (const int32_t e : picks.of(t)) ++uses[e];
      for (int64_t t = 0; t < T; ++t) {
        for (int32_t i = picks.offsets_T1[t]; i < picks.offsets_T1[t + 1]; ++i) {
          const double f = balance ? E * uses[picks.ids_C[i]] / (k * (T - 1.0)) : 1.0;
          const double expected = t == T - 1 ? 0.0 : (T - 1) * 1e-8 * 1.2 * 1.2 * 1.2 * f / (layers * (T - 1.0));
          EXPECT_NEAR(gradients.weights_C[i].item<double>(), expected, 1e-20) << "layer " << layer << " pick " << i;
        }
      }
    }
  }
}

TEST(L1Controller, MovesByOneFactorTowardsTheWantedNumber) {
  BalanceConfig config;
  config.losses = {{.type = LossType::kL1}};
  const Balancer balancer(config);
  ModelState state;
  const std::vector<int64_t> experts{4, 4};
  balancer.declare(experts, state);
  int64_t exponent = 0;
  const auto step = [&](int64_t first, int64_t second) {
    std::vector<StepTotals> totals(2);
    totals[0] = {.selected_E = {first, 0, 0, 0}, .top_k = 2, .tokens = 10};
    totals[1] = {.selected_E = {0, second, 0, 0}, .top_k = 2, .tokens = 10};
    balancer.end_step(totals, state);
  };
  EXPECT_DOUBLE_EQ(*balancer.coefficients(state)[0], 1e-8);
  for (const auto& [first, second, move] : std::vector<std::array<int64_t, 3>>{
           {30, 20, 1}, {21, 20, 1}, {20, 20, 0}, {10, 30, 0}, {19, 20, -1}, {0, 0, -1}, {40, 40, 1}}) {
    step(first, second);
    exponent += move;
    EXPECT_EQ(state.shared.values<int64_t>("l1.exponent")[0], exponent);
    EXPECT_DOUBLE_EQ(*balancer.coefficients(state)[0], 1e-8 * std::pow(1.2, static_cast<double>(exponent)));
  }
}

// Logits that a constant gradient pushes up, and the loss down: they end where a token has k experts.
TEST(L1Controller, ReachesTheWantedSparsityAndStays) {
  const int64_t T = 200, E = 8, k = 1;
  BalanceConfig config;
  config.losses = {{.type = LossType::kL1}};
  config.losses[0].l1.emplace().start = 1e-4;
  const Balancer balancer(config);
  Routed setup({.type = "relu"}, {.experts = E, .top_k = k}, T);
  ModelState state{{{}}, {}};
  const std::vector<int64_t> experts{E};
  balancer.declare(experts, state);
  Tensor offset = at::zeros({E}, at::kDouble);
  const double targets = std::accumulate(setup.batch.loss_mask.begin(), setup.batch.loss_mask.end(), 0.0);
  std::vector<double> sparsity;
  int64_t ups = 0;  // of λ, minus downs
  for (int step = 0; step < 1500; ++step) {
    ASSERT_EQ(*balancer.coefficients(state)[0], 1e-4 * std::pow(1.2, static_cast<double>(ups))) << step;
    const Decision d = decided(setup, random_tensor({T, E}, at::kDouble, 1 + step % 7) + offset);
    const Decision* layer = &d;
    ChoiceGradients gradients{.weights_C = at::zeros_like(d.choice.weights_C)};
    balancer.add_gradient({{&layer, 1}, state, setup.batch}, 0, gradients);
    const Tensor dz = setup.router->backward(d.choice, gradients).sum(0) / targets - 0.02;
    offset = offset - dz;
    StepTotals totals{.selected_E = d.statistics.selected_E, .top_k = k, .tokens = T};
    balancer.end_step({&totals, 1}, state);
    sparsity.push_back(1 - static_cast<double>(d.choice.picks.count()) / static_cast<double>(T * E));
    const double missing = 1 - static_cast<double>(k) / E - sparsity.back();  // exact: T·E numbers
    ups += missing > 0 ? 1 : missing < 0 ? -1 : 0;
  }
  const double wanted = 1 - 1.0 / 8;
  EXPECT_GT(std::abs(sparsity.front() - wanted), 0.3) << "it begins elsewhere";
  EXPECT_NEAR(std::accumulate(sparsity.begin() + 1000, sparsity.end(), 0.0) / 500, wanted, 0.01 * wanted);
  for (auto window = sparsity.begin() + 500; window != sparsity.end(); window += 50)
    EXPECT_NEAR(std::accumulate(window, window + 50, 0.0) / 50, wanted, 0.02) << window - sparsity.begin();
}

}  // namespace
}  // namespace conclave::moe
