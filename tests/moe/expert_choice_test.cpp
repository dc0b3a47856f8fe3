// SPDX-License-Identifier: Apache-2.0
// Expert choice (methods.md 8).
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::loads;
using conclave::testing::Routed;
using kernels::random_tensor;

TEST(ExpertChoice, EveryExpertTakesExactlyItsBestTokens) {
  const int64_t T = 30, E = 6, k = 2, C = 10;
  Routed setup({.type = "expert_choice"}, {.experts = E, .top_k = k}, T + 3);
  for (int64_t t = T; t < T + 3; ++t) setup.batch.segment_ids[t] = -1;
  const Choice choice = setup.route(random_tensor({T + 3, E}, at::kDouble, 1));
  EXPECT_EQ(loads(choice), std::vector<int64_t>(E, C));
  for (int64_t t = T; t < T + 3; ++t) EXPECT_TRUE(choice.picks.of(t).empty()) << "padding is nobody's choice";
  Tensor taken = at::zeros({T, E}, at::kDouble);
  for (int64_t t = 0; t < T; ++t)
    for (const int32_t e : choice.picks.of(t)) taken[t][e] = 1;
  const Tensor probs = choice.probs_TE.narrow(0, 0, T);
  const Tensor worst_taken = probs.masked_fill(taken == 0, 2.0).amin(0),
               best_left = probs.masked_fill(taken == 1, -1.0).amax(0);
  EXPECT_TRUE((worst_taken >= best_left).all().item<bool>());
}

TEST(ExpertChoice, WithRoomForAllItIsTheDenseMixture) {
  const Choice choice =
      Routed({.type = "expert_choice"}, {.experts = 6, .top_k = 6}, 9).route(random_tensor({9, 6}, at::kDouble, 1));
  EXPECT_EQ(choice.picks.count(), 54);
  EXPECT_NEAR(choice.weights_C.sum().item<double>(), 9.0, 1e-12);
}

TEST(ExpertChoice, ALayerWithRoomForAllGivesTheDenseMixture) {
  MoeConfig config;
  config.router.type = "expert_choice";
  const conclave::testing::MoeLayer layer(config, {.experts = 4, .top_k = 4}, at::kDouble);
  const Tensor x = random_tensor({9, 6}, at::kDouble, 2);
  const auto weights = layer.weights();
  const Tensor p = at::softmax(at::matmul(x, weights.router_ED.t()), 1);
  const Tensor dense = (conclave::testing::all_experts(x, weights) * p.t().unsqueeze(2)).sum(0);
  const Tensor y = layer.run(conclave::testing::random_batch(1, 9, 23, 1), x, at::zeros_like(x)).y;
  EXPECT_LT((y - dense).abs().max().item<double>(), 1e-12);
}

TEST(ExpertChoice, EvaluationAdmitsByTheMeanThreshold) {
  Routed setup({.type = "expert_choice"}, {.experts = 6, .top_k = 2}, 30);
  const Tensor logits = random_tensor({30, 6}, at::kDouble, 1);
  const Choice trained = setup.route(logits);
  StepTotals totals;
  totals.sums = trained.sums;
  setup.router->end_step(totals, setup.state);
  setup.moment.training = false;
  const Choice evaluated = setup.route(logits);
  const auto threshold = setup.state.values<float>("threshold");
  for (int64_t t = 0; t < 30; ++t) {
    for (int32_t e = 0; e < 6; ++e) {
      const auto ids = evaluated.picks.of(t);
      const bool above = evaluated.probs_TE[t][e].item<double>() >= threshold[e];
      EXPECT_EQ(std::find(ids.begin(), ids.end(), e) != ids.end(), above);
    }
  }
  EXPECT_NEAR(static_cast<double>(evaluated.picks.count()), static_cast<double>(trained.picks.count()), 6);
}

}  // namespace
}  // namespace conclave::moe
