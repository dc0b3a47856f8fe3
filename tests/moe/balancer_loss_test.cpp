// SPDX-License-Identifier: Apache-2.0
// Auxiliary losses: tabulated constants, closed-form gradients, and which numbers packing may change (methods.md
// 0.5, 2.2-2.6).
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/tensor_checks.h"
#include "moe/balancer.h"
#include "moe/router.h"
#include "support/moe_reference.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using kernels::random_tensor;

const std::vector<Convention> kConventions = {Convention::kMegatron,  Convention::kSwitch,      Convention::kGshard,
                                              Convention::kDeepspeed, Convention::kHuggingface, Convention::kDeepseek};

// One router's numbers for one micro-batch.
struct Counted : Decision {
  Batch batch;
};

Counted count(const Tensor& logits, const RouterConfig& config, int64_t k, const Batch& batch) {
  Counted c;
  c.batch = batch;
  c.choice = Router::make(config, {logits.size(1), k})->route(logits, {batch, {}, {}});
  const std::vector<uint8_t> keep(c.choice.picks.count(), 1);
  c.routing = make_routing(c.choice.picks, keep, {0, logits.size(0)}, logits.size(1));
  c.statistics = gather_statistics(c.choice, c.routing, batch, k);
  return c;
}

Balancer balancer(std::vector<BalanceLoss> losses) {
  BalanceConfig config;
  config.losses = std::move(losses);
  return Balancer(config);
}

// As before the first step.
ModelState fresh_state(const Balancer& balancer, const Counted& c) {
  ModelState state;
  const std::vector<int64_t> experts{c.choice.experts};
  balancer.declare(experts, state);
  return state;
}

double value(const Balancer& balancer, const Counted& c, const ModelState& state) {
  const Decision* layer = &c;
  return balancer.value({{&layer, 1}, state, c.batch}, 0, 0);
}

double value(const Balancer& balancer, const Counted& c) { return value(balancer, c, fresh_state(balancer, c)); }

Tensor gradient(const Balancer& balancer, const Counted& c, const ModelState& state) {
  const Decision* layer = &c;
  ChoiceGradients gradients;
  balancer.add_gradient({{&layer, 1}, state, c.batch}, 0, gradients);
  return gradients.logits_TE;
}

Tensor gradient(const Balancer& balancer, const Counted& c) { return gradient(balancer, c, fresh_state(balancer, c)); }

double largest(const Tensor& t) { return t.abs().max().item<double>(); }

// Every expert equally often at every rank of the choice.
Tensor balanced_logits(int64_t T, int64_t E) {
  Tensor logits = at::zeros({T, E}, at::kDouble);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < E; ++i) logits[t][(t + i) % E] = -0.5 * static_cast<double>(i);
  return logits;
}

Batch two_sequences() {
  Batch batch = conclave::testing::random_batch(2, 12, 23, 1);
  for (const int t : {10, 11, 21, 22, 23}) batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;
  batch.loss_mask[4] = 0;  // a token that routes but is no target
  return batch;
}

TEST(BalancerLossConventions, GiveTheTabulatedConstantWhenBalanced) {
  const Batch batch = conclave::testing::random_batch(2, 12, 23, 1);
  for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
    for (const auto convention : kConventions) {
      for (const int64_t k : {1, 2, 3}) {
        for (const auto level : {Level::kMicro, Level::kSequence, Level::kGlobal}) {
          const auto c = count(balanced_logits(24, 6), {.score = score}, k, batch);
          const double constant = convention == Convention::kHuggingface ? static_cast<double>(k) : 1.0;
          EXPECT_NEAR(value(balancer({{.level = level, .convention = convention}}), c), constant, 1e-12)
              << int(convention) << " k " << k << " level " << int(level);
        }
      }
    }
  }
}

TEST(BalancerLossSwitch, IsOneForEqualLogits) {
  const auto c = count(at::zeros({24, 6}, at::kDouble), {}, 1, conclave::testing::random_batch(2, 12, 23, 1));
  EXPECT_NEAR(value(balancer({{.convention = Convention::kSwitch}}), c), 1.0, 1e-15);
}

TEST(BalancerLossConventions, ValueAndGradientEqualAutogradOfTheFormula) {
  const Batch batch = two_sequences();
  const Tensor real = conclave::testing::real_tokens(batch, at::kDouble);
  const double targets = std::accumulate(batch.loss_mask.begin(), batch.loss_mask.end(), 0.0);
  for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
    for (const auto convention : kConventions) {
      for (const int64_t k : {1, 2, 3}) {
        const RouterConfig router{.score = score};
        const Tensor logits = kernels::leaf(random_tensor({24, 6}, at::kDouble, 7));
        const Tensor loss = conclave::testing::reference_switch_loss(logits, router, convention, k, real);
        (loss * 0.3 * targets).backward();
        const auto b = balancer({{.coef = 0.3, .convention = convention}});
        const auto c = count(logits.detach(), router, k, batch);
        EXPECT_NEAR(value(b, c), loss.item<double>(), 1e-12) << int(convention) << k;
        EXPECT_LT(largest(gradient(b, c) - logits.grad()), 1e-12) << int(convention) << k;
      }
    }
  }
}

TEST(BalancerLossSwitch, GradientIsTheClosedForm) {
  const int64_t T = 24, E = 6;
  const auto c = count(random_tensor({T, E}, at::kDouble, 7), {}, 1, conclave::testing::random_batch(2, 12, 23, 1));
  const Tensor dz = gradient(balancer({{.coef = 0.01, .convention = Convention::kSwitch}}), c);
  std::vector<double> f(E, 0.0);
  for (const int32_t id : c.choice.picks.ids_C) f[id] += 1.0 / T;
  for (int64_t t = 0; t < T; ++t) {
    double fp = 0;
    for (int64_t e = 0; e < E; ++e) fp += f[e] * c.choice.probs_TE[t][e].item<double>();
    for (int64_t e = 0; e < E; ++e) {
      const double p = c.choice.probs_TE[t][e].item<double>();
      // Times T: a micro-batch's gradient carries its count of targets until the step's one division.
      EXPECT_NEAR(dz[t][e].item<double>(), T * (0.01 * E / T * p * (f[e] - fp)), 1e-14);
    }
  }
}

TEST(BalancerLossModelScope, EqualsTheFormulaOverAllLayersTogether) {
  const Batch batch = two_sequences();
  const Tensor real = conclave::testing::real_tokens(batch, at::kDouble);
  const double targets = std::accumulate(batch.loss_mask.begin(), batch.loss_mask.end(), 0.0);
  const Tensor first = random_tensor({24, 6}, at::kDouble, 7), second = random_tensor({24, 6}, at::kDouble, 8) * 2;
  const Tensor all = kernels::leaf(at::cat({first, second}));
  const Tensor loss =
      conclave::testing::reference_switch_loss(all, {}, Convention::kHuggingface, 2, at::cat({real, real}));
  (loss * 0.3 * targets).backward();
  const std::vector<Counted> layers = {count(first, {}, 2, batch), count(second, {}, 2, batch)};
  const std::vector<const Decision*> pointers = {&layers[0], &layers[1]};
  const ModelState state{{{}, {}}, {}};
  const auto b = balancer({{.coef = 0.3, .convention = Convention::kHuggingface, .scope = Scope::kModel}});
  for (int l = 0; l < 2; ++l) {
    EXPECT_NEAR(b.value({pointers, state, batch}, 0, l), loss.item<double>(), 1e-12);
    ChoiceGradients gradients;
    b.add_gradient({pointers, state, batch}, l, gradients);
    EXPECT_LT(largest(gradients.logits_TE - all.grad().narrow(0, 24 * l, 24)), 1e-12);
  }
}

// The numbers of one sequence alone.
Counted sequence_alone(const Tensor& logits, const RouterConfig& config, int64_t k, const Batch& whole, int64_t b) {
  Batch batch = conclave::testing::random_batch(1, whole.length, 23, 1);
  std::copy_n(whole.segment_ids.begin() + b * whole.length, whole.length, batch.segment_ids.begin());
  std::copy_n(whole.loss_mask.begin() + b * whole.length, whole.length, batch.loss_mask.begin());
  return count(logits.narrow(0, b * whole.length, whole.length).contiguous(), config, k, batch);
}

// Gradients and target-weighted values of two sequences packed together against one at a time.
void expect_packing_does_not_show(const Balancer& b, Score score, const Batch& batch, const ModelState& state) {
  const Tensor logits = random_tensor({24, 6}, at::kDouble, 7);
  const auto whole = count(logits, {.score = score}, 2, batch);
  const Tensor dz = gradient(b, whole, state);
  EXPECT_GT(largest(dz), 1e-3);
  double sum = 0;
  for (int64_t s = 0; s < 2; ++s) {
    const auto alone = sequence_alone(logits, {.score = score}, 2, batch, s);
    EXPECT_LT(largest(gradient(b, alone, state) - dz.narrow(0, 12 * s, 12)), 1e-15);
    sum += value(b, alone, state) * alone.statistics.targets();
  }
  EXPECT_NEAR(value(b, whole, state) * whole.statistics.targets(), sum, 1e-12);
}

TEST(BalancerLossSequence, DoesNotSeeThePackingIntoMicroBatches) {
  for (const auto score : {Score::kSoftmax, Score::kSigmoid})
    for (const auto convention : {Convention::kDeepseek, Convention::kMegatron})
      expect_packing_does_not_show(balancer({{.coef = 0.3, .level = Level::kSequence, .convention = convention}}),
                                   score, two_sequences(), ModelState{{{}}, {}});
}

TEST(BalancerLossSequence, MicroLevelDoesSeeThePacking) {
  const Tensor logits = random_tensor({24, 6}, at::kDouble, 7);
  const Batch batch = two_sequences();
  const auto b = balancer({{.coef = 0.3}});
  const Tensor dz = gradient(b, count(logits, {}, 2, batch)).narrow(0, 0, 12);
  EXPECT_GT(largest(gradient(b, sequence_alone(logits, {}, 2, batch, 0)) - dz), 1e-3);
}

TEST(BalancerLossGlobal, UsesTheCountsOfTheLastStepAndDoesNotSeeThePacking) {
  ModelState state;
  const auto b = balancer({{.coef = 0.3, .level = Level::kGlobal}});
  const std::vector<int64_t> counts = {100, 20, 0, 40, 20, 60}, experts = {6};
  b.declare(experts, state);
  const std::vector<StepTotals> totals{{.chosen_E = counts, .selected_E = counts}};
  b.end_step(totals, state);
  const auto kept = state.layers[0].values<int64_t>("last_counts");
  EXPECT_EQ(std::vector<int64_t>(kept.begin(), kept.end()), counts);
  const Batch batch = conclave::testing::random_batch(2, 12, 23, 1);
  expect_packing_does_not_show(b, Score::kSoftmax, batch, state);
  const auto c = count(random_tensor({24, 6}, at::kDouble, 7), {}, 2, batch);
  double expected = 0;
  for (int64_t e = 0; e < 6; ++e) expected += 6 * counts[e] / 240.0 * c.choice.probs_TE.mean(0)[e].item<double>();
  EXPECT_NEAR(value(b, c, state), expected, 1e-12);
}

TEST(BalancerLossZ, GradientIsTheClosedForm) {
  const Batch batch = two_sequences();
  const Tensor real = conclave::testing::real_tokens(batch, at::kDouble);
  for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
    const auto b = balancer({{.type = LossType::kZ, .coef = 0.3}});
    const Tensor logits = random_tensor({24, 6}, at::kDouble, 7);
    const auto c = count(logits, {.score = score}, 2, batch);
    EXPECT_NEAR(value(b, c), conclave::testing::reference_z_loss(logits, real).item<double>(), 1e-13);
    const Tensor closed = at::logsumexp(logits, 1, true) * at::softmax(logits, 1) * real * (2 * 0.3 / 19 * 18);
    EXPECT_LT(largest(gradient(b, c) - closed), 1e-14);
  }
}

TEST(BalancerLossZ, AShiftOfAllLogitsAddsToTheLogSumExp) {
  const Batch batch = conclave::testing::random_batch(2, 12, 23, 1);
  const Tensor logits = random_tensor({24, 6}, at::kDouble, 7);
  const auto b = balancer({{.type = LossType::kZ}});
  for (const double a : {-3.0, 0.5, 40.0}) {
    const Tensor lse = at::logsumexp(logits, 1) + a;
    EXPECT_NEAR(value(b, count(logits + a, {}, 2, batch)), (lse * lse).mean().item<double>(), 1e-10);
  }
}

TEST(BalancerLossZ, PullsUpLogitsWhoseSigmoidsAllUnderflowed) {
  const auto c =
      count(at::zeros({24, 6}) - 200.0, {.score = Score::kSigmoid}, 2, conclave::testing::random_batch(2, 12, 23, 1));
  const Tensor dz = gradient(balancer({{.type = LossType::kZ, .coef = 0.3}, {}}), c);
  EXPECT_LT(dz.max().item<float>(), -1.0f);
}

TEST(BalancerLossSeveral, AddUp) {
  const auto c = count(random_tensor({24, 6}, at::kDouble, 7), {}, 2, two_sequences());
  const BalanceLoss z{.type = LossType::kZ, .coef = 0.2}, micro{.coef = 0.3},
      sequence{.level = Level::kSequence, .convention = Convention::kDeepseek};
  const Tensor sum = gradient(balancer({z}), c) + gradient(balancer({micro}), c) + gradient(balancer({sequence}), c);
  EXPECT_LT(largest(gradient(balancer({z, micro, sequence}), c) - sum), 1e-15);
}

}  // namespace
}  // namespace conclave::moe
