// SPDX-License-Identifier: Apache-2.0
// Sinkhorn routing (methods.md 8).
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
