// SPDX-License-Identifier: Apache-2.0
// Device, communication, variance, entropy and penalty losses, and routing by top_p (methods.md 2.4, 2.7, 1.22, 8).
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::decided;
using conclave::testing::Routed;
using kernels::random_tensor;

struct Loss {
  double value;
  ChoiceGradients gradients;
};

Loss loss_of(const BalanceLoss& config, const Routed& setup, const Decision& decision,
             std::span<const double> relative_widths = {}) {
  const Balancer balancer(BalanceConfig{.losses = {config}});
  ModelState state;
  const std::vector<int64_t> experts{decision.choice.experts};
  balancer.declare(experts, state);
  const Decision* layer = &decision;
  const LossView view{{&layer, 1}, state, setup.batch, relative_widths};
  Loss loss{balancer.value(view, 0, 0), {}};
  balancer.add_gradient(view, 0, loss.gradients);
  return loss;
}

Routed with_padding(const RouterConfig& config, int64_t experts, int64_t top_k, int64_t tokens) {
  Routed setup(config, {.experts = experts, .top_k = top_k}, tokens);
  for (const int64_t t : {tokens - 1, tokens - 2}) setup.batch.segment_ids[t] = -1, setup.batch.loss_mask[t] = 0;
  return setup;
}

TEST(ExpertGroupLoss, WithOneExpertOnEachDeviceIsTheExpertLoss) {
  for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
    const auto setup = with_padding({.score = score}, 8, 3, 20);
    const auto decision = decided(setup, random_tensor({20, 8}, at::kDouble, 1));
    const auto expected = loss_of({.coef = 0.2, .convention = Convention::kDeepseek}, setup, decision);
    for (const auto type : {LossType::kDevice, LossType::kCommunication}) {
      const auto actual = loss_of({.type = type, .coef = 0.2, .devices = 8, .max_devices = 3}, setup, decision);
      EXPECT_NEAR(actual.value, expected.value, 1e-12);
      EXPECT_LT((actual.gradients.logits_TE - expected.gradients.logits_TE).abs().max().item<double>(), 1e-12);
    }
  }
}

TEST(ExpertGroupLoss, IsTheMeanCountAndTheSumOfAffinities) {
  const auto setup = with_padding({}, 6, 2, 30);
  const auto decision = decided(setup, random_tensor({30, 6}, at::kDouble, 1));
  double expected = 0;
  for (int64_t device = 0; device < 3; ++device) {
    double f = 0, p = 0;
    for (int64_t e = 2 * device; e < 2 * device + 2; ++e) {
      for (int64_t t = 0; t < 28; ++t) {
        for (const int32_t id : decision.choice.picks.of(t)) f += id == e ? 6.0 / (2 * 28) / 2 : 0.0;
        p += decision.choice.probs_TE[t][e].item<double>() / 28;
      }
    }
    expected += f * p;
  }
  EXPECT_NEAR(loss_of({.type = LossType::kDevice, .devices = 3}, setup, decision).value, expected, 1e-12);
}

TEST(ExpertGroupLossCommunication, CountsATokenOnceForEachDevice) {
  const auto setup = with_padding({}, 6, 2, 30);
  // The first half of the tokens takes experts 0 and 1 (one device), the others 1 and 2 (two devices).
  Tensor logits = at::zeros({30, 6}, at::kDouble);
  logits.select(1, 1).fill_(3.0);
  logits.narrow(0, 0, 14).select(1, 0).fill_(2.0);
  logits.narrow(0, 14, 16).select(1, 2).fill_(2.0);
  const auto decision = decided(setup, logits);
  const Tensor p = decision.choice.probs_TE.narrow(0, 0, 28).mean(0);
  const auto of_device = [&](int64_t d) { return p.narrow(0, 2 * d, 2).sum().item<double>(); };
  // 28, 14 and no tokens; D/(M T) = 3 / (2 * 28).
  const double expected = 3.0 / 56 * (28 * of_device(0) + 14 * of_device(1));
  const BalanceLoss config{.type = LossType::kCommunication, .devices = 3, .max_devices = 2};
  EXPECT_NEAR(loss_of(config, setup, decision).value, expected, 1e-12);
}

TEST(VarianceLoss, OfEqualWeightsIsZeroAndElseNegative) {
  const BalanceLoss config{.type = LossType::kVariance};
  const auto all = with_padding({}, 4, 4, 20);
  EXPECT_NEAR(loss_of(config, all, decided(all, at::arange(4, at::kDouble).expand({20, 4}).contiguous())).value, 0.0,
              1e-15);
  const auto setup = with_padding({}, 8, 2, 20);
  EXPECT_LT(loss_of(config, setup, decided(setup, random_tensor({20, 8}, at::kDouble, 1))).value, -1e-3);
}

TEST(VarianceLoss, IsOfTheWeightsWithZerosForWhatWasNotChosen) {
  const auto setup = with_padding({}, 8, 2, 20);
  const auto decision = decided(setup, random_tensor({20, 8}, at::kDouble, 1));
  Tensor weights = at::zeros({18, 8}, at::kDouble);
  for (int64_t i = 0; i < 36; ++i)
    weights[i / 2][decision.choice.picks.ids_C[i]] = decision.choice.weights_C[i].item<double>();
  const Tensor centred = weights - weights.mean(0, true);
  const auto loss = loss_of({.type = LossType::kVariance, .coef = 0.5}, setup, decision);
  EXPECT_NEAR(loss.value, -(centred * centred).sum().item<double>() / 18, 1e-12);
  for (int64_t i = 0; i < 40; ++i) {
    const double expected =
        i < 36 ? -2 * 0.5 * 18 / 18.0 * centred[i / 2][decision.choice.picks.ids_C[i]].item<double>() : 0.0;
    EXPECT_NEAR(loss.gradients.weights_C[i].item<double>(), expected, 1e-12) << "padding has none";
  }
}

TEST(EntropyLoss, OfEqualLogitsIsTheLogarithmAndFlat) {
  const auto setup = with_padding({}, 8, 2, 20);
  const auto loss = loss_of({.type = LossType::kEntropy}, setup, decided(setup, at::zeros({20, 8}, at::kDouble)));
  EXPECT_NEAR(loss.value, std::log(8), 1e-12);
  EXPECT_LT(loss.gradients.logits_TE.abs().max().item<double>(), 1e-15);
}

// methods.md 8, HMoE: equal widths give the standard loss.
TEST(PenaltyLoss, OfEqualWidthsIsTheStandardLossUpToTheirScale) {
  const auto setup = with_padding({}, 8, 3, 20);
  const auto decision = decided(setup, random_tensor({20, 8}, at::kDouble, 1));
  const auto expected = loss_of({.coef = 0.2, .convention = Convention::kHuggingface}, setup, decision);
  for (const double scale : {1.0, 2.5}) {
    const std::vector<double> widths(8, scale);
    const auto actual = loss_of({.type = LossType::kPenalty, .coef = 0.2}, setup, decision, widths);
    EXPECT_NEAR(actual.value, scale * expected.value, 1e-12);
    EXPECT_LT((actual.gradients.logits_TE - scale * expected.gradients.logits_TE).abs().max().item<double>(), 1e-12);
  }
  EXPECT_NEAR(loss_of({.type = LossType::kPenalty}, setup, decision).value, expected.value, 1e-12) << "one for all";
}

TEST(PenaltyLoss, GrowsLinearlyWithEachWidthAndSoDoesItsGradient) {
  const auto setup = with_padding({}, 4, 2, 20);
  const auto decision = decided(setup, random_tensor({20, 4}, at::kDouble, 1));
  const auto of = [&](const std::vector<double>& widths) {
    return loss_of({.type = LossType::kPenalty, .coef = 0.3}, setup, decision, widths);
  };
  const std::vector<double> widths{0.5, 1.75, 1.0, 0.75};
  double value = 0;
  Tensor gradient = at::zeros({20, 4}, at::kDouble);
  for (size_t e = 0; e < 4; ++e) {
    std::vector<double> alone(4, 0.0);
    alone[e] = 1;
    const auto unit = of(alone);
    EXPECT_GT(unit.gradients.logits_TE.abs().max().item<double>(), 1e-3) << "every expert has a part";
    value += widths[e] * unit.value;
    gradient += widths[e] * unit.gradients.logits_TE;
  }
  const auto all = of(widths);
  EXPECT_NEAR(all.value, value, 1e-12);
  EXPECT_LT((all.gradients.logits_TE - gradient).abs().max().item<double>(), 1e-12);
}

// E Σ_e P_e mean_t 1[e in S_t] h_e, added up token by token.
TEST(PenaltyLoss, IsTheMeanWidthOfWhatTokensChoseTimesTheMeanScore) {
  const auto setup = with_padding({}, 4, 2, 20);
  const auto decision = decided(setup, random_tensor({20, 4}, at::kDouble, 1));
  const std::vector<double> widths{0.5, 1.75, 1.0, 0.75};
  double expected = 0;
  for (int64_t e = 0; e < 4; ++e) {
    double mass = 0, score = 0;
    for (int64_t t = 0; t < 18; ++t) {
      for (const int32_t id : decision.choice.picks.of(t)) mass += id == e ? widths[e] / 18 : 0.0;
      score += decision.choice.probs_TE[t][e].item<double>() / 18;
    }
    expected += 4 * mass * score;
  }
  EXPECT_NEAR(loss_of({.type = LossType::kPenalty}, setup, decision, widths).value, expected, 1e-12);
}

TEST(PenaltyLoss, TakesWidthsByTheirMean) {
  MoeConfig config;
  config.expert_hidden_size = std::vector<int64_t>{8, 24, 16, 16};
  EXPECT_EQ(relative_widths(config), (std::vector<double>{0.5, 1.5, 1, 1}));
  config.expert_hidden_size = std::vector<int64_t>{8, 8};
  EXPECT_TRUE(relative_widths(config).empty());
  config.expert_hidden_size = 8;
  EXPECT_TRUE(relative_widths(config).empty());
}

TEST(TopP, TakesTheFewestExpertsThatAddUpToP) {
  const Tensor logits = random_tensor({40, 8}, at::kDouble, 4) * 2;
  for (const double p : {0.05, 0.4, 0.6, 0.9, 1.0}) {
    Routed setup({.top_p = p}, {.experts = 8, .top_k = 2}, 40);
    const Choice choice = setup.route(logits);
    for (int64_t t = 0; t < 40; ++t) {
      const auto ids = choice.picks.of(t);
      double sum = 0, last = 2;
      for (size_t i = 0; i < ids.size(); ++i) {
        EXPECT_LT(sum, p) << "one too many";
        const double own = choice.probs_TE[t][ids[i]].item<double>();
        EXPECT_LE(own, last) << "best first";
        sum += own, last = own;
      }
      EXPECT_TRUE(sum >= p || ids.size() == 8) << t;
      EXPECT_GE(ids.size(), size_t{1});
    }
  }
}

TEST(TopP, ASwitchLossCountsTheChoicesThatWereMade) {
  Routed setup({.top_p = 0.7}, {.experts = 8, .top_k = 1}, 24);
  // Everyone takes several experts, each expert equally often: balanced, whatever top_k says.
  Tensor logits = at::zeros({24, 8}, at::kDouble);
  for (int64_t t = 0; t < 24; ++t)
    for (int64_t i = 0; i < 8; ++i) logits[t][(t + i) % 8] = -0.5 * static_cast<double>(i);
  const auto decision = decided(setup, logits);
  ASSERT_GT(decision.choice.picks.count(), 2 * 24);
  EXPECT_NEAR(loss_of({}, setup, decision).value, 1.0, 1e-12);
}

}  // namespace
}  // namespace conclave::moe
