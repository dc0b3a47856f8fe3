// SPDX-License-Identifier: Apache-2.0
// Sinkhorn routing (methods.md 8).
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::loads;
using conclave::testing::Routed;
using kernels::random_tensor;

TEST(Sinkhorn, EvensOutTrainingAndTakesTheBestLogitsInEvaluation) {
  const int64_t T = 64, E = 8;
  Routed setup({.type = "sinkhorn"}, {.experts = E, .top_k = 1}, T);
  Tensor logits = random_tensor({T, E}, at::kDouble, 1);
  logits.select(1, 2) += 4.0;  // an expert that everyone likes
  const auto even = loads(setup.route(logits));
  EXPECT_LE(*std::max_element(even.begin(), even.end()), 2 * T / E);
  EXPECT_GE(*std::min_element(even.begin(), even.end()), T / E / 3);
  setup.moment.training = false;
  const auto free = setup.route(logits);
  EXPECT_GT(loads(free)[2], T / 2);
  EXPECT_EQ(free.picks, Routed({}, {.experts = E, .top_k = 1}, T).route(logits).picks);
  EXPECT_NEAR(free.weights_C[0].item<double>(), at::sigmoid(logits[0][free.picks.ids_C[0]]).item<double>(), 1e-14);
}

RouterConfig to_the_end() {
  RouterConfig config{.type = "sinkhorn"};
  config.sinkhorn = {.tolerance = 1e-14, .iterations = 100000};
  return config;
}

// exp(z) times one factor for each row and each column, so that rows sum to 1/T and columns to 1/E.
Tensor transport_plan(const Tensor& logits) {
  const int64_t T = logits.size(0), E = logits.size(1);
  Tensor plan = at::exp(logits);
  for (int i = 0; i < 3000; ++i) {
    plan = plan / (static_cast<double>(T) * plan.sum(1, true));
    plan = plan / (static_cast<double>(E) * plan.sum(0, true));
  }
  EXPECT_LT((plan.sum(1) * static_cast<double>(T) - 1).abs().max().item<double>(), 1e-9);
  EXPECT_LT((plan.sum(0) * static_cast<double>(E) - 1).abs().max().item<double>(), 1e-9);
  return plan;
}

TEST(Sinkhorn, ChoosesByThePlanWithConstantSumsOfRowsAndColumns) {
  const int64_t T = 24, E = 6;
  for (const int64_t k : {1, 2, 3}) {
    Routed setup(to_the_end(), {.experts = E, .top_k = k}, T);
    Tensor logits = random_tensor({T, E}, at::kDouble, 10 + k);
    logits.select(1, 1) += 2.0;
    EXPECT_EQ(setup.route(logits).picks, Routed({}, setup.shape, T).route(at::log(transport_plan(logits))).picks) << k;
    EXPECT_NE(setup.route(logits).picks, Routed({}, setup.shape, T).route(logits).picks);
  }
}

TEST(Sinkhorn, OfConstantLogitsThePlanIsUniform) {
  const int64_t T = 24, E = 6;
  const Tensor uniform = transport_plan(at::zeros({T, E}, at::kDouble) + 3.0);
  EXPECT_LT((uniform * static_cast<double>(T * E) - 1).abs().max().item<double>(), 1e-12);
  Routed setup(to_the_end(), {.experts = E, .top_k = 1}, T);
  EXPECT_EQ(setup.route(at::zeros({T, E}, at::kDouble) + 3.0).picks.ids_C, std::vector<int32_t>(T, 0));
  // What all tokens or all experts have in common is no wish: the least one of their own decides.
  Tensor common = random_tensor({T, 1}, at::kDouble, 1) + 3.0 * random_tensor({1, E}, at::kDouble, 2);
  std::vector<int32_t> wishes;
  for (int32_t t = 0; t < T; ++t) wishes.push_back(t % static_cast<int32_t>(E)), common[t][t % E] += 1e-3;
  EXPECT_EQ(setup.route(common).picks.ids_C, wishes);
}

TEST(Sinkhorn, PaddingMovesNoPlan) {
  Routed setup({.type = "sinkhorn"}, {.experts = 4, .top_k = 1}, 24);
  const Tensor logits = random_tensor({24, 4}, at::kDouble, 1);
  for (int64_t t = 16; t < 24; ++t) setup.batch.segment_ids[t] = -1;
  const auto before = setup.route(logits).picks;
  Tensor other = logits.clone();
  other.narrow(0, 16, 8) = random_tensor({8, 4}, at::kDouble, 2) * 20;
  const auto after = setup.route(other).picks;
  EXPECT_TRUE(std::equal(before.ids_C.begin(), before.ids_C.begin() + 16, after.ids_C.begin()));
}

}  // namespace
}  // namespace conclave::moe
