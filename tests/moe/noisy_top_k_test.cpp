// SPDX-License-Identifier: Apache-2.0
// Noisy top-k gating and its load loss (methods.md 8).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::decided;
using conclave::testing::loads;
using conclave::testing::Routed;
using kernels::random_tensor;

TEST(NoisyTopK, EvaluationWithAllExpertsIsTheDenseSoftmax) {
  Routed setup({.type = "noisy_topk"}, {.experts = 6, .top_k = 6}, 9);
  setup.moment.training = false;
  const Tensor scores = random_tensor({9, 12}, at::kDouble, 1);
  const Choice choice = setup.route(scores);
  const Tensor dense = at::softmax(scores.narrow(1, 0, 6), 1);
  for (int64_t i = 0; i < choice.picks.count(); ++i)
    EXPECT_NEAR(choice.weights_C[i].item<double>(), dense[i / 6][choice.picks.ids_C[i]].item<double>(), 1e-14);
}

TEST(NoisyTopK, NoiseIsNormalWithTheDeviationOfItsMatrixAndAtLeastEpsilon) {
  const int64_t E = 8, T = 3000;
  RouterConfig config{.type = "noisy_topk"};
  config.noisy_topk = {.epsilon = 0.25};
  const Tensor scores = random_tensor({T, 2 * E}, at::kDouble, 1);
  const Choice choice = Routed(config, {.experts = E, .top_k = 2}, T).route(scores);
  const Tensor deviation = at::log1p(at::exp(scores.narrow(1, E, E))) + 0.25;
  EXPECT_LT((choice.deviation_TE - deviation).abs().max().item<double>(), 1e-14);
  EXPECT_LT((choice.clean_TE + deviation * choice.noise_TE - choice.logits_TE).abs().max().item<double>(), 1e-13);
  const auto n = static_cast<double>(T * E);
  EXPECT_NEAR(choice.noise_TE.mean().item<double>(), 0, 4.5 / std::sqrt(n));
  EXPECT_NEAR((choice.noise_TE * choice.noise_TE).mean().item<double>(), 1, 4.5 * std::sqrt(2 / n));
}

TEST(NoisyTopK, NoiseThatVanishesLeavesTheDenseMixtureOfAllExperts) {
  const int64_t E = 4, T = 9;
  RouterConfig config{.type = "noisy_topk"};
  config.noisy_topk = {.epsilon = 1e-14};
  Routed setup(config, {.experts = E, .top_k = E}, T);
  Tensor scores = random_tensor({T, 2 * E}, at::kDouble, 1);
  scores.narrow(1, E, E).fill_(-1e3);  // softplus of it is nothing
  const Choice trained = setup.route(scores);
  ASSERT_TRUE(trained.noise_TE.defined()) << "training draws";
  setup.moment.training = false;
  const Choice evaluated = setup.route(scores);
  EXPECT_EQ(trained.picks, evaluated.picks);
  EXPECT_LT((trained.weights_C - evaluated.weights_C).abs().max().item<double>(), 1e-12);
  // And the layer is the mixture with those weights.
  MoeConfig of_layer;
  of_layer.router = config;
  const conclave::testing::MoeLayer layer(of_layer, {.experts = E, .top_k = E}, at::kDouble);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2);
  const auto weights = layer.weights();
  const Tensor p = at::softmax(at::matmul(x, weights.router_ED.t()), 1);
  const Tensor dense = (conclave::testing::all_experts(x, weights) * p.t().unsqueeze(2)).sum(0);
  const Tensor y = layer.run(conclave::testing::random_batch(1, T, 23, 1), x, {}).y;
  EXPECT_LT((y - dense).abs().max().item<double>(), 1e-12);
}

TEST(NoisyTopK, StartsFromZeroAndThenUsesAllExpertsAlike) {
  const auto router = Router::make({.type = "noisy_topk"}, {8, 2});
  for (const auto& block : router->blocks({8, 2})) EXPECT_EQ(block.init_std, 0.0);
  const int64_t T = 4000;
  Routed setup({.type = "noisy_topk"}, {.experts = 8, .top_k = 2}, T);
  const double mean = T * 2 / 8.0, sigma = std::sqrt(T * 0.25 * 0.75);
  for (const int64_t count : loads(setup.route(at::zeros({T, 16}, at::kDouble))))
    EXPECT_NEAR(static_cast<double>(count), mean, 4.5 * sigma);
}

TEST(NoisyTopK, DrawsBySeedStepAndLayerAndTokenAlone) {
  Routed setup({.type = "noisy_topk"}, {.experts = 8, .top_k = 2}, 40);
  const Tensor zeros = at::zeros({40, 16}, at::kDouble);
  const auto first = setup.route(zeros).picks;
  EXPECT_EQ(setup.route(zeros).picks, first);
  for (auto change : {+[](Moment& m) { ++m.step; }, +[](Moment& m) { ++m.layer; }, +[](Moment& m) { ++m.seed; }}) {
    Routed other({.type = "noisy_topk"}, {.experts = 8, .top_k = 2}, 40);
    change(other.moment);
    EXPECT_NE(other.route(zeros).picks, first);
  }
  Routed moved({.type = "noisy_topk"}, {.experts = 8, .top_k = 2}, 39);  // the same tokens from the second on
  for (int64_t t = 0; t < 39; ++t) moved.batch.global_token_ids[t] = setup.batch.global_token_ids[t + 1];
  const auto later = moved.route(zeros.narrow(0, 0, 39)).picks;
  for (int64_t t = 0; t < 39; ++t)
    EXPECT_TRUE(std::equal(later.of(t).begin(), later.of(t).end(), first.of(t + 1).begin()));
}

TEST(NoisyTopK, ThreadsDoNotShow) {
  const int64_t T = 1500, E = 64;  // elements enough to be cut in the middle of a row
  Routed setup({.type = "noisy_topk"}, {.experts = E, .top_k = 2}, T);
  const Tensor scores = random_tensor({T, 2 * E}, at::kFloat, 1), a = random_tensor({2 * T}, at::kFloat, 2);
  kernels::expect_threads_do_not_show([&] {
    const Choice choice = setup.route(scores);
    return std::vector<Tensor>{choice.deviation_TE, choice.weights_C,
                               setup.router->backward(choice, {.weights_C = a.clone()})};
  });
}

// The probability that an expert is among the k best when its noise alone is drawn again.
std::vector<double> chances(const Choice& choice, int64_t token, int64_t k) {
  std::vector<double> all;
  for (int64_t e = 0; e < choice.experts; ++e) {
    std::vector<double> others;
    for (int64_t o = 0; o < choice.experts; ++o)
      if (o != e) others.push_back(choice.logits_TE[token][o].item<double>());
    std::sort(others.begin(), others.end(), std::greater<>());
    const double distance =
        (choice.clean_TE[token][e].item<double>() - others[k - 1]) / choice.deviation_TE[token][e].item<double>();
    all.push_back(0.5 * std::erfc(-distance / std::sqrt(2.0)));
  }
  return all;
}

// Population variance over the squared mean.
double squared_variation_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  double mean = 0, variance = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) variance += (v - mean) * (v - mean) / n;
  return variance / (mean * mean);
}

double value_of(LossType type, const Decision& d, const Batch& batch) {
  const Balancer balancer(BalanceConfig{.losses = {{.type = type}}});
  const ModelState state{{{}}, {}};
  const Decision* layer = &d;
  return balancer.value({{&layer, 1}, state, batch}, 0, 0);
}

TEST(NoisyTopK, LoadIsHowOftenAnExpertIsChosenWhenItsNoiseIsDrawnAgain) {
  const int64_t E = 5, T = 3, draws = 40000;
  for (const int64_t k : {1, 2, 4}) {
    Routed setup({.type = "noisy_topk"}, {.experts = E, .top_k = k}, T);
    const Decision d = decided(setup, random_tensor({T, 2 * E}, at::kDouble, 2 + k));
    std::vector<double> load(E, 0.0);
    for (int64_t t = 0; t < T; ++t) {
      const auto chance = chances(d.choice, t, k);
      const Random random(9 + t, Purpose::kTest);
      for (int64_t e = 0; e < E; ++e) {
        load[e] += chance[e];
        const double clean = d.choice.clean_TE[t][e].item<double>(),
                     deviation = d.choice.deviation_TE[t][e].item<double>();
        std::vector<double> others;
        for (int64_t o = 0; o < E; ++o)
          if (o != e) others.push_back(d.choice.logits_TE[t][o].item<double>());
        double frequency = 0;
        for (int64_t i = 0; i < draws; ++i) {
          const double own = clean + deviation * random.normal(i * E + e);
          frequency += std::count_if(others.begin(), others.end(), [&](double o) { return o > own; }) < k;
        }
        frequency /= static_cast<double>(draws);
        const double sigma = std::sqrt(chance[e] * (1 - chance[e]) / static_cast<double>(draws));
        EXPECT_NEAR(frequency, chance[e], 3 * sigma + 1e-12) << "k " << k << " token " << t << " expert " << e;
      }
    }
    const double expected = squared_variation_of(load);
    EXPECT_NEAR(value_of(LossType::kLoad, d, setup.batch), expected, 1e-9 * expected) << k;
  }
}

TEST(ImportanceLoss, IsTheSquaredVariationOfSumsOfWeightsAndHasItsGradient) {
  const int64_t E = 5, T = 14;
  Routed setup({}, {.experts = E, .top_k = 2}, T);
  setup.batch.segment_ids[T - 1] = -1, setup.batch.loss_mask[T - 1] = 0;
  setup.batch.loss_mask[3] = 0;  // a token that routes but is no target
  const Decision d = decided(setup, random_tensor({T, E}, at::kDouble, 3));
  std::vector<double> importance(E, 0.0);
  for (int32_t i = 0; i < 2 * (T - 1); ++i) importance[d.choice.picks.ids_C[i]] += d.choice.weights_C[i].item<double>();
  const double expected = squared_variation_of(importance);
  EXPECT_NEAR(value_of(LossType::kImportance, d, setup.batch), expected, 1e-9 * expected);
  const double mean = std::accumulate(importance.begin(), importance.end(), 0.0) / E, variance = expected * mean * mean;
  const Balancer balancer(BalanceConfig{.losses = {{.type = LossType::kImportance, .coef = 0.3}}});
  const ModelState state{{{}}, {}};
  const Decision* layer = &d;
  ChoiceGradients gradients;
  balancer.add_gradient({{&layer, 1}, state, setup.batch}, 0, gradients);
  for (int32_t i = 0; i < 2 * T; ++i) {
    const double closed =
        2 * (importance[d.choice.picks.ids_C[i]] - mean) / (E * mean * mean) - 2 * variance / (E * mean * mean * mean);
    const double weighted = i >= 2 * (T - 1) ? 0.0 : 0.3 * (T - 2) * closed;
    EXPECT_NEAR(gradients.weights_C[i].item<double>(), weighted, 1e-9 * std::abs(weighted)) << i;
  }
}

}  // namespace
}  // namespace conclave::moe
