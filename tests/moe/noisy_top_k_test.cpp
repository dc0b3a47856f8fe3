// SPDX-License-Identifier: Apache-2.0
// Noisy top-k gating and its load loss (methods.md 8).
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

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

TEST(NoisyTopK, LoadIsHowOftenAnExpertIsChosenWhenItsNoiseIsDrawnAgain) {
  const int64_t E = 5, k = 2, draws = 40000;
  Routed setup({.type = "noisy_topk"}, {.experts = E, .top_k = k}, 1);
  setup.batch.loss_mask[0] = 1;
  Decision d;
  d.choice = setup.route(random_tensor({1, 2 * E}, at::kDouble, 3));
  const std::vector<uint8_t> keep(k, 1);
  d.routing = make_routing(d.choice.picks, keep, {0, 1}, E);
  d.statistics = gather_statistics(d.choice, d.routing, setup.batch, k);
  std::vector<double> frequency(E, 0.0);
  const Random random(9, Purpose::kTest);
  for (int64_t e = 0; e < E; ++e) {
    for (int64_t i = 0; i < draws; ++i) {
      const double own = d.choice.clean_TE[0][e].item<double>() +
                         d.choice.deviation_TE[0][e].item<double>() * random.normal(i * E + e);
      int64_t better = 0;
      for (int64_t o = 0; o < E; ++o) better += o != e && d.choice.logits_TE[0][o].item<double>() > own;
      frequency[e] += better < k ? 1.0 / draws : 0.0;
    }
  }
  const Balancer balancer(BalanceConfig{.losses = {{.type = LossType::kLoad}}});
  const ModelState state{{{}}, {}};
  const Decision* layer = &d;
  const double value = balancer.value({{&layer, 1}, state, setup.batch}, 0, 0);
  double mean = 0, variance = 0;
  for (const double f : frequency) mean += f / E;
  for (const double f : frequency) variance += (f - mean) * (f - mean) / E;
  EXPECT_NEAR(value, variance / (mean * mean), 0.03 * value + 0.01);
}

}  // namespace
}  // namespace conclave::moe
