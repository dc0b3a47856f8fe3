// SPDX-License-Identifier: Apache-2.0
// Default MoE (methods.md 1.20 and 8).
#include <ATen/ops/einsum.h>
#include <gtest/gtest.h>

#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::decided;
using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using conclave::testing::Routed;
using kernels::random_tensor;

constexpr int64_t kExperts = 5, kTokens = 20, kWidth = 6;

MoeConfig config_of(double decay = 0.9) {
  MoeConfig config;
  config.router = {.type = "default_moe"};
  config.router.default_moe = {.decay = decay};
  return config;
}

// What every expert gives every token, [T, E, D].
Tensor outputs_of(const MoeLayer& layer, const Tensor& x_TD) {
  std::vector<Tensor> outputs;
  for (int64_t e = 0; e < kExperts; ++e) {
    const auto h = at::mm(x_TD, layer.gate_up(e).t()).chunk(2, 1);
    outputs.push_back(at::mm(at::silu(h[0]) * h[1], layer.down(e).t()));
  }
  return at::stack(outputs, 1);
}

struct OneLayer {
  explicit OneLayer(int64_t top_k, const MoeConfig& config = config_of())
      : layer(config, {.experts = kExperts, .top_k = top_k, .width = kWidth}, at::kDouble),
        batch(random_batch(1, kTokens, 23, 1)),
        x(random_tensor({kTokens, kWidth}, at::kDouble, 2)),
        dy(random_tensor({kTokens, kWidth}, at::kDouble, 3)) {}
  Tensor means() { return layer.state().get("default_outputs"); }
  Tensor probs() const { return at::softmax(at::mm(x, layer.router().t()), 1); }

  MoeLayer layer;
  Batch batch;
  Tensor x, dy;
};

// Of the tokens' own experts, 1.
Tensor mask_of(const Choice& choice) {
  Tensor mask = at::zeros({choice.tokens(), kExperts}, at::kDouble);
  for (int64_t t = 0; t < choice.tokens(); ++t)
    for (const int32_t e : choice.picks.of(t)) mask[t][e] = 1;
  return mask;
}

TEST(DefaultMoe, WithAllExpertsIsTheDenseSoftmaxMixture) {
  OneLayer s(kExperts);
  const auto result = s.layer.run(s.batch, s.x, s.dy);
  const Tensor expected = at::einsum("te,ted->td", {s.probs(), outputs_of(s.layer, s.x)});
  EXPECT_LT((result.y - expected).abs().max().item<double>(), 1e-12);
}

TEST(DefaultMoe, WithoutMeansIsTopKThatIsNotRenormalised) {
  OneLayer s(2), plain(2, MoeConfig());
  s.means().zero_();
  kernels::expect_same_bits(s.layer.run(s.batch, s.x, s.dy).y, plain.layer.run(s.batch, s.x, s.dy).y, "y");
}

TEST(DefaultMoe, MeansStandInForExpertsThatWereNotChosen) {
  OneLayer s(2);
  const auto result = s.layer.run(s.batch, s.x, s.dy);
  const Tensor mask = mask_of(result.decision.choice).unsqueeze(2);
  const Tensor outputs = outputs_of(s.layer, s.x) * mask + s.means().to(at::kDouble).unsqueeze(0) * (1 - mask);
  const Tensor expected = at::einsum("te,ted->td", {s.probs(), outputs});
  EXPECT_LT((result.y - expected).abs().max().item<double>(), 1e-12);
  EXPECT_LT((s.layer.run(s.batch, s.x, {}).y - expected).abs().max().item<double>(), 1e-12) << "in evaluation";
}

// ∂L/∂z_j = p_j (ã_j − Σ p_i ã_i).
TEST(DefaultMoe, EveryLogitHasTheGradientOfADenseMixture) {
  OneLayer s(2);
  const auto result = s.layer.run(s.batch, s.x, s.dy);
  const Tensor mask = mask_of(result.decision.choice).unsqueeze(2), p = s.probs();
  const Tensor outputs = outputs_of(s.layer, s.x) * mask + s.means().to(at::kDouble).unsqueeze(0) * (1 - mask);
  const Tensor a = at::einsum("td,ted->te", {s.dy, outputs});
  const Tensor dlogits = p * (a - (p * a).sum(1, true));
  EXPECT_LT((result.drouter - at::mm(dlogits.t(), s.x)).abs().max().item<double>(), 1e-11);
}

TEST(DefaultMoe, ExpertsHaveTheirOrdinaryGradient) {
  OneLayer s(2), plain(2, MoeConfig());
  const auto own = s.layer.run(s.batch, s.x, s.dy), expected = plain.layer.run(s.batch, s.x, s.dy);
  kernels::expect_same_bits(own.dexperts[0].down_EDF, expected.dexperts[0].down_EDF, "down");
  kernels::expect_same_bits(own.dexperts[0].gate_up_E2FD, expected.dexperts[0].gate_up_E2FD, "gate and up");
}

TEST(DefaultMoe, ANewMeanIsOfWhatExpertsGaveWithoutWeights) {
  constexpr double kDecay = 0.75;
  MoeConfig config = config_of(kDecay);
  config.expert_hidden_size = std::vector<int64_t>{5, 3, 8, 5, 2};
  OneLayer s(2, config);
  for (int64_t t = kTokens - 3; t < kTokens; ++t) s.batch.segment_ids[t] = -1, s.batch.loss_mask[t] = 0;
  const auto result = s.layer.run(s.batch, s.x, s.dy);
  Tensor mask = mask_of(result.decision.choice);
  mask.narrow(0, kTokens - 3, 3).zero_();
  const Tensor sums = at::einsum("te,ted->ed", {mask, outputs_of(s.layer, s.x)}), counts = mask.sum(0).unsqueeze(1);
  const Tensor expected = kDecay * s.means() + (1 - kDecay) * sums / counts;
  const auto router = Router::make(config_of(kDecay).router, {.experts = kExperts, .top_k = 2, .hidden = kWidth});
  router->end_step({.dispatched_E = result.decision.statistics.dispatched_E, .outputs_ED = result.outputs},
                   s.layer.state());
  EXPECT_LT((s.means() - expected).abs().max().item<double>(), 1e-6);
}

TEST(DefaultMoe, AnEvaluationCountsNothing) {
  OneLayer s(2);
  EXPECT_TRUE(s.layer.run(s.batch, s.x, {}).outputs.empty());
}

TEST(DefaultMoe, AMeanWithoutTokensStaysAndTheFirstBeginsAtZero) {
  const RouteShape shape{.experts = 2, .top_k = 1, .hidden = 3};
  Routed setup(config_of(0.9).router, shape, 4);
  const auto means = setup.state.values<float>("default_outputs");
  for (const float mean : means) EXPECT_EQ(mean, 0.0f);
  means[3] = 5;
  setup.router->end_step(
      {.dispatched_E = {4, 0}, .outputs_ED = {fixed_point(8), fixed_point(-4), fixed_point(0), 7, 7, 7}}, setup.state);
  const std::vector<float> expected{0.2f, -0.1f, 0, 5, 0, 0};  // no correction of the bias towards zero
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_FLOAT_EQ(means[i], expected[i]) << i;
}

TEST(DefaultMoe, SumsAreFixedPointAndBounded) {
  EXPECT_EQ(fixed_point(1.0), int64_t{1} << 24);
  EXPECT_EQ(fixed_point(-0.5), -(int64_t{1} << 23));
  EXPECT_EQ(fixed_point(1e30), int64_t{1} << 54);
  EXPECT_EQ(fixed_point(std::numeric_limits<double>::quiet_NaN()), 0);
}

}  // namespace
}  // namespace conclave::moe
