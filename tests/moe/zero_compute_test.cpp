// SPDX-License-Identifier: Apache-2.0
// Experts that compute nothing (methods.md 7.1, MoE++).
#include <ATen/ops/eye.h>
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/tensor_checks.h"
#include "model/accounting.h"
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

constexpr int64_t kComputing = 4, kTokens = 20, kWidth = 6;

MoeConfig config_of(ZeroComputeConfig own, bool normalise = true) {
  MoeConfig config;
  config.router.type = "zero_compute";
  config.router.norm_topk_prob = normalise;
  config.router.zero_compute = own;
  return config;
}

struct Ran {
  Tensor x, y, dx, dy;
  Decision decision;
};

// A layer whose experts from `favoured` on, `count` of them, are always taken: the first input of each token is 1.
Ran run(MoeLayer& layer, int64_t favoured, int64_t count) {
  layer.router().select(1, 0).fill_(-60);
  layer.router().select(1, 0).narrow(0, favoured, count).fill_(60);
  Ran ran{.x = random_tensor({kTokens, kWidth}, at::kDouble, 2),
          .dy = random_tensor({kTokens, kWidth}, at::kDouble, 3)};
  ran.x.select(1, 0).fill_(1);
  auto result = layer.run(random_batch(1, kTokens, 23, 1), ran.x, ran.dy);
  ran.y = result.y, ran.dx = result.dx, ran.decision = std::move(result.decision);
  return ran;
}

TEST(ZeroCompute, OnlyCopiesWithRenormalisedWeightsGiveTheToken) {
  MoeLayer layer(config_of({.zero = 1, .copy = 3, .constant = 0}), {kComputing, 2, kWidth, 5}, at::kDouble);
  const Ran ran = run(layer, kComputing + 1, 3);
  EXPECT_EQ(ran.decision.routing.pairs(), 0) << "nothing travels";
  EXPECT_LT((ran.y - ran.x).abs().max().item<double>(), 1e-12);
  EXPECT_LT((ran.dx - ran.dy).abs().max().item<double>(), 1e-9);
}

TEST(ZeroCompute, ZerosAddNothingAndSendNothing) {
  MoeLayer layer(config_of({.zero = 3, .copy = 1, .constant = 0}), {kComputing, 2, kWidth, 5}, at::kDouble);
  const Ran ran = run(layer, kComputing, 3);
  EXPECT_EQ(ran.decision.routing.pairs(), 0);
  EXPECT_EQ(ran.decision.statistics.dropped, 0);
  EXPECT_EQ(ran.y.abs().max().item<double>(), 0.0);
}

TEST(ZeroCompute, ConstantsMixTheTokenAndTheirVector) {
  MoeLayer layer(config_of({.zero = 1, .copy = 1, .constant = 2}, false), {kComputing, 2, kWidth, 5}, at::kDouble);
  const Ran ran = run(layer, kComputing + 2, 2);
  const auto& choice = ran.decision.choice;
  for (int64_t t = 0; t < kTokens; ++t) {
    Tensor expected = at::zeros({kWidth}, at::kDouble);
    for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i) {
      const int64_t v = choice.picks.ids_C[i] - kComputing - 2;
      ASSERT_GE(v, 0);
      const double z1 = choice.scores_TS[t][kComputing + 4 + 2 * v].item<double>(),
                   z2 = choice.scores_TS[t][kComputing + 4 + 2 * v + 1].item<double>(), a = 1 / (1 + std::exp(z2 - z1));
      expected += choice.weights_C[i].item<double>() * (a * ran.x[t] + (1 - a) * layer.vectors()[v]);
    }
    EXPECT_LT((ran.y[t] - expected).abs().max().item<double>(), 1e-12) << t;
  }
}

TEST(ZeroCompute, PaddingGetsNothing) {
  MoeLayer layer(config_of({.zero = 0, .copy = 2, .constant = 1}), {kComputing, 2, kWidth, 5}, at::kDouble);
  Batch batch = random_batch(1, kTokens, 23, 1);
  batch.segment_ids[7] = -1, batch.loss_mask[7] = 0;
  const Tensor x = random_tensor({kTokens, kWidth}, at::kDouble, 2),
               dy = random_tensor({kTokens, kWidth}, at::kDouble, 3);
  const auto result = layer.run(batch, x, dy);
  EXPECT_EQ(result.y[7].abs().max().item<double>(), 0.0);
  EXPECT_GT(result.y[8].abs().max().item<double>(), 0.0);
}

TEST(ZeroCompute, ComputingExpertsHaveTheCapacityOfTheirShare) {
  auto config = config_of({.zero = 1, .copy = 1, .constant = 2, .tau = 0.5});
  config.capacity.factor = 1.1, config.capacity.min = 1;
  MoeLayer layer(config, {kComputing, 3, kWidth, 5}, at::kDouble);
  // All tokens want two computing experts: ceil(1.1 · 0.5 · 20 · 3 / (0.5 · 4 + 4)) of them get each.
  const Ran ran = run(layer, 0, 2);
  EXPECT_EQ(ran.decision.statistics.dispatched_E[0], 6);
  EXPECT_EQ(ran.decision.statistics.dispatched_E[1], 6);
}

TEST(ZeroCompute, PlannedFlopsAreThoseOfAnEvenLoad) {
  // Under an even load at τ = 3/4, 3 · 0.75 · 6 / (0.75 · 6 + 3) = 1.8 of three picks compute.
  model::ModelConfig model{.vocab_size = 32, .hidden_size = 16, .num_layers = 1, .num_attention_heads = 4};
  MoeConfig config = config_of({.zero = 1, .copy = 1, .constant = 1});
  config.num_experts = int64_t{6}, config.top_k = 3, config.expert_hidden_size = 40;
  const auto shape = model::model_shape(model, config);
  EXPECT_NEAR(shape.layers[0].mean_picks, 1.8, 1e-12);
  EXPECT_EQ(model::count_flops(shape, model::Counter::kExact, 8).experts, std::llround(1.8 * 2 * 3 * 16 * 40));
  EXPECT_EQ(model::count_parameters(shape, model::Counter::kExact).layers[0].active_experts,
            std::llround(1.8 * 3 * 16 * 40));
  EXPECT_EQ(shape.layers[0].router_columns, 6 + 3 + 2);
  // The capacity at factor 1 of six experts is as many pairs.
  const auto C = expert_capacity({.factor = 1.0, .min = 1}, true, 1000, 3,
                                 Router::make(config.router, {6, 3})->even_experts({6, 3}));
  EXPECT_EQ(*C * 6, 1800);
}

// Tokens that want each computing expert three times and each other four: what is planned for an even load is what
// experts compute.
TEST(ZeroCompute, CountedFlopsAreThoseOfWhatExpertsCompute) {
  constexpr int64_t kExperts = 6, kOthers = 3, kAll = kExperts + kOthers, kEach = 12, F = 40;
  MoeConfig config = config_of({.zero = 1, .copy = 1, .constant = 1});
  MoeLayer layer(config, {kExperts, 1, kAll, F}, at::kDouble);
  layer.router().copy_(8 * at::eye(kAll, at::kDouble));
  std::vector<int64_t> wanted;
  for (int64_t e = 0; e < kAll; ++e) wanted.insert(wanted.end(), e < kExperts ? kEach * 3 / 4 : kEach, e);
  const int64_t T = std::ssize(wanted);
  Tensor x = at::zeros({T, kAll}, at::kDouble);
  for (int64_t t = 0; t < T; ++t) x[t][wanted[t]] = 1;
  const auto result = layer.run(random_batch(1, T, 23, 1), x, at::zeros_like(x));
  const auto& dispatched = result.decision.statistics.dispatched_E;
  EXPECT_EQ(std::accumulate(dispatched.begin(), dispatched.end(), int64_t{0}), result.decision.routing.pairs());
  const model::ModelConfig model{
      .vocab_size = 32, .hidden_size = kAll, .num_layers = 1, .num_attention_heads = 1, .head_dim = 4};
  config.num_experts = kExperts, config.top_k = 1, config.expert_hidden_size = F;
  const auto planned = model::count_flops(model::model_shape(model, config), model::Counter::kExact, T).experts;
  const double measured = static_cast<double>(result.decision.routing.pairs() * 2 * 3 * kAll * F) / T;
  EXPECT_NEAR(static_cast<double>(planned), measured, 0.5) << "of a token, in whole operations";
  EXPECT_LT(measured, 0.61 * 2 * 3 * kAll * F) << "the rest computes nothing";
}

TEST(ZeroCompute, ASwitchLossWeighsThemByTau) {
  Routed setup(config_of({.zero = 2, .copy = 2, .constant = 0, .tau = 0.5}).router, {.experts = kComputing, .top_k = 1},
               2 * kTokens);
  // Everybody picks a computing expert, or everybody another; scores as good as even.
  const Balancer balancer(BalanceConfig{.losses = {{.coef = 1.0}}});
  const ModelState state{{{}}, {}};
  for (const bool computing : {true, false}) {
    Tensor scores = at::zeros({2 * kTokens, kComputing + 4}, at::kDouble);
    for (int64_t t = 0; t < 2 * kTokens; ++t) scores[t][t % 4 + (computing ? 0 : kComputing)] = 1e-7;
    const Decision d = decided(setup, scores);
    const Decision* layer = &d;
    EXPECT_NEAR(balancer.value({{&layer, 1}, state, setup.batch}, 0, 0), computing ? 1.0 : 0.5, 1e-6);
  }
}

}  // namespace
}  // namespace conclave::moe
