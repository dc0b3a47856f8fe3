// SPDX-License-Identifier: Apache-2.0
// Dropout inside experts (methods.md 1.2 and 8).
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/moe_layer.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using kernels::random_tensor;

constexpr double kRate = 0.3;

std::vector<int64_t> tokens_from(int64_t first, int64_t count) {
  std::vector<int64_t> tokens(count);
  for (int64_t i = 0; i < count; ++i) tokens[i] = first + i;
  return tokens;
}

// What is left of ones, one row for each token, all of local expert `expert`.
Tensor mask(const DropoutSite& site, const std::vector<int64_t>& tokens, int64_t width, int64_t step = 0,
            int64_t expert = 0) {
  Tensor ones = at::ones({std::ssize(tokens), width}, at::kDouble);
  const std::vector<Segment> segments{{expert, 0, 0, std::ssize(tokens)}};
  ExpertDropout(kRate, site).apply(segments, tokens, step, ones);
  return ones;
}

TEST(ExpertDropout, TakesTheShareAndRaisesWhatIsLeft) {
  constexpr int64_t kRows = 400, kColumns = 50;
  const Tensor left = mask({.experts = 4, .widest = kColumns}, tokens_from(0, kRows), kColumns);
  const double lost = (left == 0).sum().item<double>() / (kRows * kColumns);
  EXPECT_NEAR(lost, kRate, 3 * std::sqrt(kRate * (1 - kRate) / (kRows * kColumns)));
  EXPECT_TRUE(((left == 0) | (left == 1 / (1 - kRate))).all().item<bool>());
  // Neither rows nor columns have a share of their own beyond chance.
  EXPECT_LT(((left == 0).to(at::kDouble).mean(0) - kRate).abs().max().item<double>(), 0.12);
  EXPECT_LT(((left == 0).to(at::kDouble).mean(1) - kRate).abs().max().item<double>(), 0.35);
}

TEST(ExpertDropout, IsAFunctionOfSeedStepLayerTokenAndExpert) {
  const DropoutSite site{.seed = 7, .layer = 2, .experts = 8, .first_expert = 4, .widest = 40};
  const auto tokens = tokens_from(30, 5);
  const Tensor left = mask(site, tokens, 40, 3);
  EXPECT_TRUE(left.equal(mask(site, tokens, 40, 3)));
  EXPECT_TRUE(left.narrow(0, 2, 3).equal(mask(site, tokens_from(32, 3), 40, 3))) << "rows stand for tokens";
  DropoutSite elsewhere = site;  // the same expert on a rank that has others
  elsewhere.first_expert = 2;
  EXPECT_TRUE(left.equal(mask(elsewhere, tokens, 40, 3, 2)));
  EXPECT_FALSE(left.equal(mask(site, tokens, 40, 4))) << "step";
  EXPECT_FALSE(left.equal(mask(site, tokens, 40, 3, 1))) << "expert";
  EXPECT_FALSE(left.equal(mask(site, tokens_from(31, 5), 40, 3))) << "token";
  for (DropoutSite other : {site, site}) {
    other.layer = 1;
    EXPECT_FALSE(left.equal(mask(other, tokens, 40, 3))) << "layer";
    other = site;
    other.seed = 8;
    EXPECT_FALSE(left.equal(mask(other, tokens, 40, 3))) << "seed";
  }
}

TEST(ExpertDropout, APartOfAnExpertsWidthLosesWhatTheWholeLosesThere) {
  DropoutSite site{.experts = 2, .widest = 22};
  const Tensor whole = mask(site, tokens_from(0, 6), 22);
  site.first_columns = {9};
  EXPECT_TRUE(mask(site, tokens_from(0, 6), 13).equal(whole.narrow(1, 9, 13)));
}

TEST(ExpertDropout, TokenIdsTravelExactlyInEveryNumberFormat) {
  const std::vector<int64_t> ids{0, 255, 256, 123'456'789'012, (int64_t{1} << 48) - 1};
  for (const auto dtype : kernels::kBothTypes) {
    const Tensor digits = token_digits(ids, at::TensorOptions().dtype(dtype));
    EXPECT_EQ(tokens_of(digits), ids);
    EXPECT_EQ(tokens_of(digits.to(at::kBFloat16).to(dtype)), ids);
  }
  EXPECT_EQ(tokens_of(token_digits(std::vector<int64_t>{-1}, at::kFloat)), std::vector<int64_t>{0});
}

// y of the layer with the masks put in by hand, and without in an evaluation; decisions and what experts read stay.
TEST(ExpertDropout, ChangesHiddenActivationsOfTrainingAlone) {
  constexpr int64_t kTokens = 24, kWidth = 6, kExperts = 4, kHidden = 5;
  MoeConfig config, plain;
  config.experts.dropout = kRate;
  const conclave::testing::LayerSize size{kExperts, 2, kWidth, kHidden};
  const MoeLayer layer(config, size, at::kDouble), without(plain, size, at::kDouble);
  const Batch batch = random_batch(1, kTokens, 23, 1, 2);
  const Tensor x = random_tensor({kTokens, kWidth}, at::kDouble, 2),
               dy = random_tensor({kTokens, kWidth}, at::kDouble, 3);
  const auto result = layer.run(batch, x, dy), expected = without.run(batch, x, dy);
  kernels::expect_same_bits(result.rows, expected.rows, "what experts read");
  kernels::expect_same_bits(result.decision.choice.weights_C, expected.decision.choice.weights_C, "weights");
  EXPECT_EQ(result.decision.choice.picks, expected.decision.choice.picks);
  kernels::expect_same_bits(layer.run(batch, x, {}).y, without.run(batch, x, {}).y, "evaluation");
  Tensor y = at::zeros_like(x);
  const Choice& choice = result.decision.choice;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i) {
      const int32_t e = choice.picks.ids_C[i];
      const auto h = at::mm(x.narrow(0, t, 1), layer.gate_up(e).t()).chunk(2, 1);
      const Tensor left = mask({.experts = kExperts, .widest = kHidden}, {batch.global_token_ids[t]}, kHidden, 0, e);
      y[t] += choice.weights_C[i] * at::mm(at::silu(h[0]) * h[1] * left, layer.down(e).t())[0];
    }
  }
  EXPECT_LT((result.y - y).abs().max().item<double>(), 1e-12);
}

}  // namespace
}  // namespace conclave::moe
