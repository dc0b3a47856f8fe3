// SPDX-License-Identifier: Apache-2.0
// Loss-free balancing (methods.md 2.5): how the bias moves, and what must not move it.
#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "model/executors/sequential.h"
#include "model/routing_totals.h"
#include "moe/router.h"
#include "support/expert_mesh.h"
#include "support/moe_reference.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using kernels::random_tensor;

BiasConfig bias_rule(double u, bool center = false, BiasRule rule = BiasRule::kSign) { return {u, rule, center}; }

std::vector<float> moved(const BiasConfig& config, const std::vector<int64_t>& counts) {
  std::vector<float> bias(counts.size(), 0.0f);
  move_bias(config, counts, bias);
  return bias;
}

MethodState with_bias(int64_t experts) {
  MethodState state;
  state.declare("bias", at::zeros({experts}));
  return state;
}

Choice routed(const Router& router, const Tensor& logits, const MethodState& state) {
  return router.route(logits, {{}, state, {}});
}

void step(const BiasConfig& config, const std::vector<int64_t>& counts, const MethodState& state) {
  move_bias(config, counts, state.values<float>("bias"));
}

TEST(BalancerBias, MovesByExactlyOneStepOrNotAtAll) {
  const float u = 1e-3f;
  EXPECT_EQ(moved(bias_rule(1e-3), {10, 6, 8, 8}), (std::vector<float>{-u, u, 0, 0}));
  EXPECT_EQ(moved(bias_rule(1e-3), {3, 4, 4}), (std::vector<float>{u, -u, -u}));
  EXPECT_EQ(moved(bias_rule(1e-3), {0, 0, 12}), (std::vector<float>{u, u, -u}));
}

TEST(BalancerBias, DoesNotMoveWhenCountsAreEqualOrThereAreNone) {
  for (const int64_t count : {int64_t{0}, int64_t{7}, (int64_t{1} << 52) + 1})
    EXPECT_EQ(moved(bias_rule(1e-3), std::vector<int64_t>(3, count)), std::vector<float>(3, 0.0f)) << count;
}

TEST(BalancerBias, SeesADifferenceOfOneTokenInAnyTotal) {
  const int64_t many = int64_t{1} << 55;  // beyond what a double tells apart
  const float u = 1e-3f;
  EXPECT_EQ(moved(bias_rule(1e-3), {many + 1, many - 1, many}), (std::vector<float>{-u, u, 0}));
}

TEST(BalancerBias, ProportionalRuleMovesByTheRelativeExcess) {
  const auto bias = moved(bias_rule(0.1, false, BiasRule::kProportional), {12, 4, 8, 8});
  EXPECT_FLOAT_EQ(bias[0], -0.05f);
  EXPECT_FLOAT_EQ(bias[1], 0.05f);
  EXPECT_EQ(bias[2], 0.0f);
}

std::vector<int64_t> histogram(const Choice& choice) {
  std::vector<int64_t> counts(choice.logits_TE.size(1), 0);
  for (const int32_t id : choice.picks.ids_C) ++counts[id];
  return counts;
}

TEST(BalancerBias, CentredAndUncentredRouteAlike) {
  const auto router = Router::make({.score = Score::kSigmoid, .norm_topk_prob = true}, {8, 2});
  const MethodState plain = with_bias(8), centred = with_bias(8);
  bool moved = false;
  for (int64_t i = 0; i < 60; ++i) {
    Tensor logits = random_tensor({32, 8}, at::kDouble, 100 + i);
    logits.select(1, 2) += 1.5;  // an expert that everyone likes
    const auto a = routed(*router, logits, plain), b = routed(*router, logits, centred);
    ASSERT_EQ(a.picks, b.picks) << "step " << i;
    kernels::expect_same_bits(a.weights_C, b.weights_C, "weights");
    step(bias_rule(0.01), histogram(a), plain);
    step(bias_rule(0.01, true), histogram(b), centred);
    EXPECT_LT(std::abs(centred.get("bias").sum().item<float>()), 1e-6f);
    moved = moved || std::abs(plain.get("bias").sum().item<float>()) > 0.02f;
  }
  EXPECT_TRUE(moved) << "the two biases never differed";
}

TEST(BalancerBias, EvensOutASkewedRouter) {
  const auto router = Router::make({.score = Score::kSigmoid}, {8, 2});
  const MethodState state = with_bias(8);
  Tensor logits = random_tensor({256, 8}, at::kDouble, 1) * 0.3;
  logits.select(1, 2) += 2.0;
  for (int i = 0; i < 400; ++i) step(bias_rule(0.002), histogram(routed(*router, logits, state)), state);
  const auto counts = histogram(routed(*router, logits, state));
  EXPECT_LE(*std::max_element(counts.begin(), counts.end()), 64 * 1.15);
}

model::TransformerConfig biased_model() {
  auto config = conclave::testing::tiny_config();
  config.moe.router.score = Score::kSigmoid;
  config.moe.balance.bias.update_rate = 1e-2;
  config.moe.balance.losses = {{.level = Level::kGlobal}};
  return config;
}

TEST(BalancerBias, IsNoParameterAndIsMovedByNoForwardOrBackward) {
  model::Transformer m(biased_model());
  for (const auto& parameter : m.parameters().all())
    for (const auto& part : parameter.parts) EXPECT_EQ(part.name.find("bias"), std::string::npos) << part.name;
  const Tensor bias = m.state().layers[0].get("bias");
  bias.copy_(random_tensor({4}, at::kFloat, 1));
  const Tensor before = bias.clone();
  const Batch batch = conclave::testing::random_batch(2, 9, 23, 3);
  nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
  for (nn::Gradients* g : {static_cast<nn::Gradients*>(nullptr), &gradients}) {
    nn::Frame frame = m.frame(batch, g);
    model::SequentialExecutor(m).run(frame);
    kernels::expect_same_bits(bias, before, g ? "training" : "evaluation");
    EXPECT_EQ(m.state().layers[0].get("last_counts").sum().item<int64_t>(), 0);
  }
}

// Biases and remembered counts after three steps of four micro-batches on `ranks` data- and expert-parallel ranks.
std::vector<MethodState> after_steps(const comm::Group& group) {
  model::Transformer m(biased_model(), test::expert_mesh(group));
  for (int step = 0; step < 3; ++step) {
    model::RoutingTotals totals(m);
    for (int64_t i = 0; i < 4 / group.size(); ++i) {
      const int64_t index = group.rank() * (4 / group.size()) + i;
      const Batch batch = conclave::testing::random_batch(1, 9, 23, 3, step * 4 + index);
      nn::Frame frame = m.frame(batch, nullptr);
      model::SequentialExecutor(m).run(frame);
      totals.add(m, frame);
    }
    totals.reduce(group);
    totals.end_step(m);
  }
  return m.state().layers;
}

TEST(BalancerBiasRanks, CountsAndBiasAreThoseOfOneRank) {
  const auto expected = after_steps(comm::Group());
  EXPECT_GT(expected[0].get("bias").abs().max().item<float>(), 0.0f);
  for (const int ranks : {2, 4}) {
    test::run_ranks(ranks, [&](const comm::Group& group) {
      const auto actual = after_steps(group);
      for (size_t l = 0; l < expected.size(); ++l) {
        kernels::expect_same_bits(actual[l].get("bias"), expected[l].get("bias"), "bias");
        EXPECT_TRUE(actual[l].get("last_counts").equal(expected[l].get("last_counts")));
      }
    });
  }
}

}  // namespace
}  // namespace conclave::moe
