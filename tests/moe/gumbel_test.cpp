// SPDX-License-Identifier: Apache-2.0
// DeepSpeed's draws by Gumbel noise: RSample and the second expert of two (methods.md 1.4).
#include "moe/gumbel.h"

#include <ATen/Parallel.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/tensor_checks.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::loads;
using conclave::testing::Routed;
using kernels::random_tensor;

const RouterConfig kSampled{.noise = "gumbel"};
const RouterConfig kSecond{.norm_topk_prob = true, .second = "gumbel"};
const std::vector<double> kLogits{1.7, 2.0, 1.2, -1.0, 0.4};

Tensor equal_rows(int64_t tokens) {
  return at::tensor(kLogits, at::kDouble).expand({tokens, std::ssize(kLogits)}).contiguous();
}

// Softmax over all experts but `without`.
std::vector<double> law(int32_t without) {
  std::vector<double> p;
  for (size_t e = 0; e < kLogits.size(); ++e)
    p.push_back(static_cast<int32_t>(e) == without ? 0 : std::exp(kLogits[e]));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

// Pearson's statistic of `drawn` under `p`; outcomes of probability zero must not occur.
double chi_square(const std::vector<int64_t>& drawn, const std::vector<double>& p, int64_t draws) {
  double sum = 0;
  for (size_t e = 0; e < p.size(); ++e) {
    const double expected = p[e] * static_cast<double>(draws);
    if (p[e] == 0) {
      EXPECT_EQ(drawn[e], 0) << e;
    } else {
      sum += std::pow(static_cast<double>(drawn[e]) - expected, 2) / expected;
    }
  }
  return sum;
}

TEST(Gumbel, RSampleDrawsExactlyFromTheSoftmaxAndWeighsWithoutTheNoise) {
  const int64_t T = 60000;
  Routed setup(kSampled, {.experts = 5, .top_k = 1}, T);
  const auto p = law(-1);
  for (const int64_t step : {0, 1, 7}) {
    setup.moment.step = step;
    const Choice choice = setup.route(equal_rows(T));
    EXPECT_LT(chi_square(loads(choice), p, T), 18.5) << "99.9 % of chi-square with 4 degrees";
    for (int64_t t = 0; t < 200; ++t) ASSERT_NEAR(choice.weights_C[t].item<double>(), p[choice.picks.ids_C[t]], 1e-15);
  }
}

TEST(Gumbel, TheSecondExpertIsDrawnFromTheSoftmaxOverTheOthers) {
  const int64_t T = 60000;
  Routed setup(kSecond, {.experts = 5, .top_k = 2}, T);
  const Choice choice = setup.route(equal_rows(T));
  std::vector<int64_t> seconds(5, 0);
  const auto whole = law(-1);
  for (int64_t t = 0; t < T; ++t) {
    ASSERT_EQ(choice.picks.ids_C[2 * t], 1) << "the first is the largest";
    ++seconds[choice.picks.ids_C[2 * t + 1]];
  }
  EXPECT_LT(chi_square(seconds, law(1), T), 16.3) << "99.9 % of chi-square with 3 degrees";
  for (int64_t t = 0; t < 200; ++t) {
    const double first = whole[1], second = whole[choice.picks.ids_C[2 * t + 1]];
    ASSERT_NEAR(choice.weights_C[2 * t].item<double>(), first / (first + second), 1e-14);
    ASSERT_NEAR(choice.weights_C[2 * t + 1].item<double>(), second / (first + second), 1e-14);
  }
  EXPECT_TRUE(choice.declined_C.empty()) << "it is always used";
}

TEST(Gumbel, AnEvaluationTakesTheLargest) {
  const Tensor logits = random_tensor({50, 5}, at::kDouble, 3);
  for (const auto& [config, k] : {std::pair(kSampled, 1), std::pair(kSecond, 2)}) {
    RouterConfig without = config;
    without.noise = "none", without.second = "always";
    Routed plain(without, {.experts = 5, .top_k = k}, 50), setup(config, {.experts = 5, .top_k = k}, 50);
    EXPECT_NE(setup.route(logits).picks, plain.route(logits).picks);
    setup.moment.training = false;
    EXPECT_EQ(setup.route(logits).picks, plain.route(logits).picks);
  }
}

TEST(Gumbel, DrawsGoByStepLayerTokenAndExpertNotByPlace) {
  const int64_t T = 400;
  const Tensor logits = at::zeros({T, 5}, at::kDouble);
  for (const auto& [config, k] : {std::pair(kSampled, 1), std::pair(kSecond, 2)}) {
    Routed here(config, {.experts = 5, .top_k = k}, T), moved = here.moved_by(1);
    const auto ids = here.route(logits).picks.ids_C, away = moved.route(logits).picks.ids_C;
    for (int64_t t = 0; t + 1 < T; ++t) ASSERT_EQ(away[k * t + k - 1], ids[k * (t + 1) + k - 1]) << t;
    const int threads = at::get_num_threads();
    at::set_num_threads(2);
    EXPECT_EQ(here.route(logits).picks.ids_C, ids) << "again, with other threads: what recomputation draws";
    at::set_num_threads(threads);
    here.moment.step = 1;
    const auto next = here.route(logits).picks.ids_C;
    here.moment.step = 0, here.moment.layer = 1;
    EXPECT_NE(next, ids);
    EXPECT_NE(here.route(logits).picks.ids_C, ids);
    EXPECT_NE(here.route(logits).picks.ids_C, next);
  }
}

TEST(Gumbel, OneExpertAndNoTokenAreSafe) {
  Routed one(kSampled, {.experts = 1, .top_k = 1}, 3);
  EXPECT_EQ(one.route(at::zeros({3, 1}, at::kDouble)).picks.ids_C, (std::vector<int32_t>{0, 0, 0}));
  Routed two(kSecond, {.experts = 2, .top_k = 2}, 3);
  EXPECT_EQ(two.route(at::zeros({3, 2}, at::kDouble)).picks.ids_C, (std::vector<int32_t>{0, 1, 0, 1, 0, 1}));
  Routed none(kSampled, {.experts = 4, .top_k = 1}, 0);
  EXPECT_EQ(none.route(at::zeros({0, 4}, at::kDouble)).picks.count(), 0);
}

}  // namespace
}  // namespace conclave::moe
