// SPDX-License-Identifier: Apache-2.0
// The gates of the published methods: weights and their gradients against closed forms (methods.md 0.2 and 8). The same
// methods as whole layers, on one rank and on several, are in layer_reference_test and layer_ranks_test.
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "moe/router.h"
#include "support/moe_layer.h"
#include "support/moe_methods.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using kernels::random_tensor;

constexpr int64_t T = 13, E = 8;

Choice route(const RouterConfig& config, int64_t k, const Tensor& logits, const Tensor& bias = {}) {
  MethodState state;
  if (bias.defined()) state.declare("bias", bias);
  return Router::make(config, {logits.size(1), k})->route(logits, {{}, state, {}});
}

// dlogits of weights' gradients a [T, K].
Tensor gate_gradient(const RouterConfig& config, const Tensor& a_TK, const Choice& choice) {
  return Router::make(config, {E, a_TK.size(1)})->backward(choice, {.weights_C = a_TK.flatten()});
}

RouterConfig method(const std::string& name) {
  for (const auto& m : conclave::testing::all_methods())
    if (m.name == name) return m.config().router;
  throw UsageError("no method {}", name);
}

// The closed forms of methods.md 0.2 for one token, written as they stand there.
Tensor table_gradient(const RouterConfig& config, const Choice& c, const Tensor& a_TK, int64_t k) {
  Tensor dz = at::zeros_like(c.logits_TE);
  const double r = config.routed_scaling_factor;
  const bool over_chosen = config.score == Score::kSoftmax && (!config.score_before_topk || config.norm_topk_prob);
  for (int64_t t = 0; t < T; ++t) {
    const auto chosen = [&](int64_t i) { return c.picks.ids_C[t * k + i]; };
    const auto score = [&](int64_t j) { return c.probs_TE[t][j].item<double>(); };
    const auto a = [&](int64_t i) { return a_TK[t][i].item<double>(); };
    double z_sum = 0, pa = 0, wa = 0;
    for (int64_t i = 0; i < k; ++i) z_sum += score(chosen(i)), pa += score(chosen(i)) * a(i);
    for (int64_t i = 0; i < k; ++i) wa += r * score(chosen(i)) / z_sum * a(i);
    for (int64_t j = 0; j < E; ++j) {
      int64_t place = -1;
      for (int64_t i = 0; i < k; ++i)
        if (chosen(i) == j) place = i;
      const double aj = place < 0 ? 0 : a(place), in = place < 0 ? 0 : 1, s = score(j);
      double expected = r * s * (in * aj - pa);                    // row 1
      if (over_chosen) expected = in * s / z_sum * (r * aj - wa);  // row 2
      if (config.score == Score::kSigmoid)                         // row 3, or without the division
        expected = config.norm_topk_prob ? in * s * (1 - s) * (r * aj - wa) / z_sum : in * s * (1 - s) * r * aj;
      dz[t][j] = expected;
    }
  }
  return dz;
}

TEST(GateGeneric, GradientEqualsTheTableOfClosedForms) {
  for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
    for (const bool before : {true, false}) {
      for (const bool norm : {true, false}) {
        for (const int64_t k : {1, 2, 5, 8}) {
          RouterConfig config{
              .score = score, .score_before_topk = before, .norm_topk_prob = norm, .routed_scaling_factor = 2.5};
          const Tensor logits = random_tensor({T, E}, at::kDouble, 1), a = random_tensor({T, k}, at::kDouble, 2);
          const auto choice = route(config, k, logits);
          const Tensor actual = gate_gradient(config, a, choice);
          const Tensor wrong = (actual - table_gradient(config, choice, a, k)).abs().max();
          EXPECT_LT(wrong.item<double>(), 1e-12) << int(score) << before << norm << k;
        }
      }
    }
  }
}

TEST(GateGeneric, RenormalisedTopOneHasExactlyNoRouterGradient) {
  for (const auto dtype : kernels::kBothTypes) {
    for (const double scale : {1.0, 2.5}) {
      for (auto config : {RouterConfig{.norm_topk_prob = true}, RouterConfig{.score_before_topk = false},
                          RouterConfig{.score = Score::kSigmoid, .norm_topk_prob = true}}) {
        config.routed_scaling_factor = scale;
        const auto choice = route(config, 1, random_tensor({T, E}, dtype, 1));
        const Tensor dz = gate_gradient(config, random_tensor({T, 1}, dtype, 2), choice);
        EXPECT_EQ(dz.abs().max().item<double>(), 0.0) << scale;
      }
    }
  }
}

TEST(GateSwitch, OutputIsTheLargestProbabilityTimesItsExpert) {
  MoeConfig config;
  config.top_k = 1;
  MoeLayer layer(config, {.experts = 8, .top_k = 1}, at::kDouble);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2);
  const Tensor probs = at::softmax(at::mm(x, layer.router().t()), 1);
  const Tensor outputs = conclave::testing::all_experts(x, layer.weights());
  const Tensor y = layer.run(conclave::testing::random_batch(1, T, 23, 1), x, {}).y;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t best = probs[t].argmax().item<int64_t>();
    EXPECT_LT((y[t] - probs[t][best] * outputs[best][t]).abs().max().item<double>(), 1e-12);
  }
}

TEST(GateSwitch, OneExpertIsTheDenseFeedForward) {
  MoeLayer layer({}, {.experts = 1, .top_k = 1}, at::kDouble);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2);
  const Tensor y = layer.run(conclave::testing::random_batch(1, T, 23, 1), x, {}).y;
  EXPECT_LT((y - conclave::testing::all_experts(x, layer.weights())[0]).abs().max().item<double>(), 1e-13);
}

TEST(GateGshard, WeightsOfTheTwoSumToOneBeforeDropsAndAreNotRescaledAfter) {
  const RouterConfig config = method("Gshard");
  const auto choice = route(config, 2, random_tensor({T, E}, at::kDouble, 1));
  EXPECT_LT((choice.weights_C.view({choice.tokens(), -1}).sum(1) - 1).abs().max().item<double>(), 1e-14);

  auto with_drops = conclave::testing::all_methods()[2].config();
  ASSERT_TRUE(with_drops.router.norm_topk_prob && with_drops.capacity.factor);
  with_drops.capacity.factor = 0.4;
  MoeLayer layer(with_drops, {.experts = 8, .top_k = 2}, at::kDouble);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2);
  const auto result = layer.run(conclave::testing::random_batch(1, T, 23, 1), x, at::zeros_like(x));
  EXPECT_GT(result.decision.statistics.dropped, 0);
  const auto& routing = result.decision.routing;
  const Tensor outputs = conclave::testing::all_experts(x, layer.weights());
  Tensor y = at::zeros_like(x);
  for (int64_t e = 0; e < 8; ++e) {
    for (int32_t n = routing.offsets_E1[e]; n < routing.offsets_E1[e + 1]; ++n) {
      const int64_t t = routing.rows_N[n];
      y[t] += result.decision.choice.weights_C[routing.picks_N[n]] * outputs[e][t];
    }
  }
  EXPECT_LT((y - result.y).abs().max().item<double>(), 1e-12);
}

TEST(GateMixtral, SoftmaxOverChosenLogitsIsTheRenormalisedSoftmax) {
  const Tensor logits = random_tensor({T, E}, at::kDouble, 1), da = random_tensor({T, 2}, at::kDouble, 2);
  const RouterConfig over = method("Mixtral"), norm{.norm_topk_prob = true};
  const auto a = route(over, 2, logits), b = route(norm, 2, logits);
  EXPECT_EQ(a.picks, b.picks);
  EXPECT_LT((a.weights_C - b.weights_C).abs().max().item<double>(), 1e-15);
  const Tensor dz = gate_gradient(over, da, a) - gate_gradient(norm, da, b);
  EXPECT_LT(dz.abs().max().item<double>(), 1e-14);
}

TEST(GateMixtral, AShiftOfAllLogitsChangesNothing) {
  const Tensor logits = random_tensor({T, E}, at::kDouble, 1);
  const auto a = route(method("Mixtral"), 2, logits), b = route(method("Mixtral"), 2, logits + 64.0);
  EXPECT_EQ(a.picks, b.picks);
  EXPECT_LT((a.weights_C - b.weights_C).abs().max().item<double>(), 1e-13);
}

TEST(GateMixtral, IdenticalExpertsAreOneDenseExpert) {
  MoeConfig config;
  config.router = method("Mixtral");
  MoeLayer layer(config, {.experts = 8, .top_k = 2}, at::kDouble);
  layer.make_experts_identical();
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2);
  const Tensor y = layer.run(conclave::testing::random_batch(1, T, 23, 1), x, {}).y;
  EXPECT_LT((y - conclave::testing::all_experts(x, layer.weights())[0]).abs().max().item<double>(), 1e-13);
}

TEST(GateDbrx, FourOfSixteenSumToOneOnMixtralsPath) {
  const Tensor logits = random_tensor({T, 16}, at::kDouble, 1);
  const auto dbrx = route(method("Dbrx"), 4, logits), mixtral = route(method("Mixtral"), 4, logits);
  EXPECT_LT((dbrx.weights_C.view({dbrx.tokens(), -1}).sum(1) - 1).abs().max().item<double>(), 1e-14);
  EXPECT_EQ(dbrx.picks, mixtral.picks);
  EXPECT_LT((dbrx.weights_C - mixtral.weights_C).abs().max().item<double>(), 1e-15);
}

TEST(GateDeepSeekV3, WeightsSumToTheScalingFactor) {
  const auto choice =
      route(method("DeepSeekV3"), 4, random_tensor({T, 16}, at::kDouble, 1), random_tensor({16}, at::kFloat, 2));
  EXPECT_LT((choice.weights_C.view({choice.tokens(), -1}).sum(1) - 2.5).abs().max().item<double>(), 1e-14);
}

TEST(GateDeepSeekV3, AConstantAddedToAllBiasesChangesNothing) {
  const Tensor logits = random_tensor({T, 16}, at::kDouble, 1), bias = random_tensor({16}, at::kFloat, 2);
  const auto a = route(method("DeepSeekV3"), 4, logits, bias), b = route(method("DeepSeekV3"), 4, logits, bias + 8.0);
  EXPECT_EQ(a.picks, b.picks);
  kernels::expect_same_bits(a.weights_C, b.weights_C, "weights");
}

TEST(GateDeepSeekV3, BiasChoosesButDoesNotWeigh) {
  const Tensor logits = random_tensor({T, 16}, at::kDouble, 1);
  Tensor bias = at::zeros({16});
  bias[5] = 100.0;
  const auto choice = route(method("DeepSeekV3"), 4, logits, bias);
  for (int64_t t = 0; t < T; ++t) {
    ASSERT_EQ(choice.picks.ids_C[t * 4], 5);
    const Tensor s = at::sigmoid(logits[t]);
    double sum = 0;
    for (int64_t i = 0; i < 4; ++i) sum += s[choice.picks.ids_C[t * 4 + i]].item<double>();
    EXPECT_NEAR(choice.weights_C[4 * t].item<double>(), 2.5 * s[5].item<double>() / sum, 1e-14);
  }
}

}  // namespace
}  // namespace conclave::moe
