// SPDX-License-Identifier: Apache-2.0
// The stages of a layer against the plain ATen reference: output and every gradient, in both dtypes.
#include <gtest/gtest.h>

#include <set>

#include "kernels/tensor_checks.h"
#include "moe/capacity.h"
#include "support/moe_layer.h"
#include "support/moe_methods.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using testing::LayerSize;
using testing::MoeLayer;

constexpr double kTolerance64 = 1e-9, kTolerance32 = 1e-5;

// Relative to the larger of the tensor's largest element and 1e-3 of a unit.
void expect_near(const Tensor& actual, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  if (actual.numel() == 0) return;
  const double tolerance = actual.scalar_type() == at::kDouble ? kTolerance64 : kTolerance32;
  const Tensor e = expected.detach().to(at::kDouble), difference = (actual.to(at::kDouble) - e).abs();
  ASSERT_LE(difference.max().item<double>(), tolerance * std::max(1e-3, e.abs().max().item<double>())) << what;
}

Batch tokens(int64_t T) {
  Batch batch = T % 11 == 0 ? testing::random_batch(T / 11, 11, 23, 1) : testing::random_batch(1, T, 23, 1);
  if (T < 16) return batch;
  for (const int64_t t : {T - 1, T - 2}) batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;  // padding
  batch.loss_mask[3] = 0;
  return batch;
}

// What a loss adds to the sum that a step minimises: weighted by the micro-batch's targets, counted without the bias.
Tensor balance_term(const moe::BalanceLoss& loss, const moe::MoeConfig& config, int64_t k, const Tensor& x,
                    const testing::ReferenceWeights& weights, const Batch& batch) {
  const Tensor logits = at::matmul(x, weights.router_ED.t()), real = testing::real_tokens(batch, at::kDouble);
  const double targets = std::accumulate(batch.loss_mask.begin(), batch.loss_mask.end(), 0.0);
  const auto value = [&] {
    if (loss.type == moe::LossType::kZ) return testing::reference_z_loss(logits, real);
    if (loss.type == moe::LossType::kPenalty)
      return testing::reference_penalty(logits, config.router, *config.expert_hidden_size->each(), k, real);
    return testing::reference_switch_loss(logits, config.router, loss.convention, k, real);
  }();
  return value * (loss.coef * targets);
}

void compare(const moe::MoeConfig& config, LayerSize size, int64_t T, at::ScalarType dtype) {
  MoeLayer layer(config, size, dtype);
  testing::ReferenceLayer reference{config, size.top_k, {}, -1};
  if (layer.state().get("bias").defined()) {
    layer.state().get("bias").copy_(kernels::random_tensor({size.experts}, at::kFloat, 5) * 0.1);
    reference.bias_E = layer.state().get("bias");
  }
  const Batch batch = tokens(T);
  int64_t real = 0;
  for (const int32_t segment : batch.segment_ids) real += segment >= 0;
  if (const auto capacity = moe::expert_capacity(config.capacity, true, real, size.top_k, size.experts))
    reference.capacity = *capacity;
  const Tensor x = kernels::random_tensor({T, size.width}, dtype, 2),
               dy = kernels::random_tensor({T, size.width}, dtype, 3);
  const auto result = layer.run(batch, x, dy);

  // fp32 is compared with the reference in fp64 on the same numbers.
  const auto leaf = [](const Tensor& t) { return kernels::leaf(t); };
  const auto own = layer.weights();
  const testing::ReferenceWeights weights{leaf(own.router_ED), leaf(own.gate_up_E2FD), leaf(own.down_EDF)};
  const Tensor x64 = leaf(x);
  const Tensor y = reference(x64, weights, batch);
  Tensor objective = (y * dy.to(at::kDouble)).sum();
  for (const auto& loss : config.balance.losses)
    objective = objective + balance_term(loss, config, size.top_k, x64, weights, batch);
  objective.backward();
  expect_near(result.y, y, "y");
  expect_near(result.dx, x64.grad(), "dx");
  expect_near(result.drouter, weights.router_ED.grad(), "router");
  expect_near(result.dexperts[0].gate_up_E2FD, weights.gate_up_E2FD.grad(), "gate and up");
  expect_near(result.dexperts[0].down_EDF, weights.down_EDF.grad(), "down");
}

class LayerReference : public ::testing::TestWithParam<int64_t> {};

TEST_P(LayerReference, GivesTheOutputAndAllGradientsOfTheReference) {
  const int64_t E = GetParam();
  std::vector<testing::Method> routers;
  for (const auto& method : testing::all_methods())
    if (std::set<std::string>{"GenericGate", "Mixtral", "Dbrx", "DeepSeekV3"}.contains(method.name))
      routers.push_back(method);
  size_t turn = 0;
  for (const int64_t k : std::set<int64_t>{1, std::min<int64_t>(E, 2), std::min<int64_t>(E, 7), (E + 1) / 2, E}) {
    for (const int64_t T : {1, 7, 16, 33}) {
      for (const auto dtype : kernels::kBothTypes) {
        // Large layers take turns with the routers; small ones see all of them.
        for (size_t r = 0; r < (E < 64 ? routers.size() : 1); ++r) {
          const auto& method = routers[(turn + r) % routers.size()];
          SCOPED_TRACE(fmt::format("{} E {} k {} T {} {}", method.name, E, k, T, toString(dtype)));
          compare(method.config(), {E, k, 6, 5}, T, dtype);
          if (HasFatalFailure()) return;
        }
        turn += dtype == at::kDouble;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LayerReference, ::testing::Values(1, 2, 5, 8, 64, 512));

class LayerReferenceMethod : public ::testing::TestWithParam<testing::Method> {};

TEST_P(LayerReferenceMethod, GivesTheOutputAndAllGradientsOfTheReference) {
  const auto& method = GetParam();
  for (const int64_t T : {1, 7, 16, 33}) {
    for (const auto dtype : kernels::kBothTypes) {
      SCOPED_TRACE(fmt::format("T {} {}", T, toString(dtype)));
      compare(method.config(), {method.experts, method.top_k, 9, 7}, T, dtype);
    }
  }
}

TEST_P(LayerReferenceMethod, GivesTheGradientsOfTheReferenceWithAuxiliaryLosses) {
  const auto& method = GetParam();
  for (const auto convention : {moe::Convention::kMegatron, moe::Convention::kSwitch, moe::Convention::kHuggingface}) {
    auto config = method.config();
    config.balance.losses = {{.coef = 0.3, .convention = convention}, {.type = moe::LossType::kZ, .coef = 0.2}};
    for (const auto dtype : kernels::kBothTypes) compare(config, {method.experts, method.top_k, 9, 7}, 33, dtype);
  }
}

// In the position order, whatever the policy of training.
TEST_P(LayerReferenceMethod, EvaluatesAsItTrainsByPosition) {
  const auto& method = GetParam();
  const testing::LayerSize size{method.experts, method.top_k, 9, 7};
  const Tensor x = kernels::random_tensor({33, 9}, at::kFloat, 2);
  const Batch batch = tokens(33);
  const Tensor evaluated = MoeLayer(method.config(), size, at::kFloat).run(batch, x, {}).y;
  auto config = method.config();
  config.capacity.policy = moe::DropPolicy::kPosition;
  kernels::expect_same_bits(evaluated, MoeLayer(config, size, at::kFloat).run(batch, x, at::zeros_like(x)).y, "y");
}

INSTANTIATE_TEST_SUITE_P(All, LayerReferenceMethod, ::testing::ValuesIn(testing::all_methods()),
                         [](const auto& info) { return info.param.name; });

// Experts of different widths (HMoE): the reference has them filled up with zeros to the widest.
class LayerReferenceWidths : public ::testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(LayerReferenceWidths, GiveTheOutputAndAllGradientsOfTheReference) {
  moe::MoeConfig config;
  config.expert_hidden_size = GetParam();
  const int64_t E = std::ssize(GetParam());
  for (const bool penalised : {false, true}) {
    if (penalised) config.balance.losses = {{.type = moe::LossType::kPenalty, .coef = 0.3}};
    for (const int64_t k : std::set<int64_t>{1, 2, E})
      for (const int64_t T : {1, 7, 16, 33})
        for (const auto dtype : kernels::kBothTypes) {
          SCOPED_TRACE(fmt::format("k {} T {} {}", k, T, toString(dtype)));
          compare(config, {E, k, 6, 0}, T, dtype);
        }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LayerReferenceWidths,
                         ::testing::Values(std::vector<int64_t>{1, 7, 3, 5}, std::vector<int64_t>{9, 9, 2, 2, 2, 16},
                                           std::vector<int64_t>{64, 1}));

TEST(LayerReferenceWidth, AListOfEqualWidthsHasTheBitsOfOne) {
  moe::MoeConfig one, each;
  each.expert_hidden_size = std::vector<int64_t>(5, 7);
  const Tensor x = kernels::random_tensor({33, 6}, at::kFloat, 2), dy = kernels::random_tensor({33, 6}, at::kFloat, 3);
  const auto expected = MoeLayer(one, {5, 2, 6, 7}, at::kFloat).run(tokens(33), x, dy),
             actual = MoeLayer(each, {5, 2, 6, 0}, at::kFloat).run(tokens(33), x, dy);
  kernels::expect_same_bits(actual.y, expected.y, "y");
  kernels::expect_same_bits(actual.dx, expected.dx, "dx");
  kernels::expect_same_bits(actual.dexperts[0].down_EDF, expected.dexperts[0].down_EDF, "down");
}

TEST(LayerReferenceGradients, OfAnExpertWithoutTokensAreExactlyZero) {
  moe::MoeConfig config;
  config.balance.bias.update_rate = 1e-3;
  MoeLayer layer(config, {5, 2, 6, 5}, at::kFloat);
  layer.state().get("bias")[3] = -10.0f;
  const auto result = layer.run(tokens(16), kernels::random_tensor({16, 6}, at::kFloat, 2),
                                kernels::random_tensor({16, 6}, at::kFloat, 3));
  EXPECT_EQ(result.decision.statistics.dispatched_E[3], 0);
  EXPECT_EQ(result.dexperts[0].gate_up_E2FD[3].abs().max().item<float>(), 0.0f);
  EXPECT_EQ(result.dexperts[0].down_EDF[3].abs().max().item<float>(), 0.0f);
  EXPECT_GT(result.dexperts[0].down_EDF[2].abs().max().item<float>(), 0.0f);
}

TEST(LayerReferenceGradients, OfABatchOfPaddingAreExactlyZero) {
  Batch batch = testing::random_batch(1, 7, 23, 1);
  std::fill(batch.segment_ids.begin(), batch.segment_ids.end(), -1);
  std::fill(batch.loss_mask.begin(), batch.loss_mask.end(), 0.0f);
  moe::MoeConfig config;
  config.balance.losses = {{}, {.type = moe::LossType::kZ}};
  const auto result =
      MoeLayer(config, {}, at::kDouble)
          .run(batch, kernels::random_tensor({7, 6}, at::kDouble, 2), kernels::random_tensor({7, 6}, at::kDouble, 3));
  for (const Tensor& t :
       {result.y, result.dx, result.drouter, result.dexperts[0].gate_up_E2FD, result.dexperts[0].down_EDF})
    EXPECT_EQ(t.abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace conclave
