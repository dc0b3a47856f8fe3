// SPDX-License-Identifier: Apache-2.0
// Grouped dense backpropagation (methods.md 1.20 and 8).
#include <ATen/ops/einsum.h>
#include <ATen/ops/eye.h>
#include <gtest/gtest.h>

#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using kernels::random_tensor;

constexpr int64_t kExperts = 6, kSequences = 2, kLength = 12, kTokens = kSequences * kLength, kScale = 3;

MoeConfig config_of(const std::string& type = "dense_backprop_group") {
  MoeConfig config;
  config.router = {.type = type, .routed_scaling_factor = kScale};
  return config;
}

// Tokens are as wide as there are tokens, and each is a unit vector of its own: the gradient of the router's weight is
// then that of the logits, transposed.
struct OneLayer {
  explicit OneLayer(int64_t top_k, const MoeConfig& config = config_of())
      : layer(config, {.experts = kExperts, .top_k = top_k, .width = kTokens}, at::kDouble),
        batch(random_batch(kSequences, kLength, 23, 1)),
        x(at::eye(kTokens, at::kDouble)),
        dy(random_tensor({kTokens, kTokens}, at::kDouble, 3)) {
    for (const int64_t t : {kLength - 2, kLength - 1}) batch.segment_ids[t] = -1, batch.loss_mask[t] = 0;
  }
  testing::LayerResult run() const { return layer.run(batch, x, dy); }
  Tensor probs() const { return at::softmax(at::mm(x, layer.router().t()), 1); }
  // What every expert gives every token, [T, E, D].
  Tensor outputs() const {
    return conclave::testing::all_experts(x, layer.weights()).detach().transpose(0, 1).contiguous();
  }

  MoeLayer layer;
  Batch batch;
  Tensor x, dy;
};

Tensor dlogits(const testing::LayerResult& result) { return result.drouter.t().contiguous(); }

bool has(const Choice& choice, int64_t t, int64_t e) {
  const auto ids = choice.picks.of(t);
  return std::find(ids.begin(), ids.end(), e) != ids.end();
}

bool meet(const Choice& choice, int64_t t, int64_t u) {
  for (const int32_t e : choice.picks.of(t))
    if (has(choice, u, e)) return true;
  return false;
}

// Tokens by whose outputs expert e counts for token t: itself where it chose e.
std::vector<int64_t> givers(const OneLayer& s, const Choice& choice, int64_t t, int64_t e) {
  if (has(choice, t, e)) return {t};
  std::vector<int64_t> found;
  for (int64_t u = t / kLength * kLength; u < (t / kLength + 1) * kLength; ++u)
    if (s.batch.segment_ids[u] >= 0 && has(choice, u, e) && meet(choice, t, u)) found.push_back(u);
  return found;
}

// What each weight would gain, [T, E], and how many experts had a stand-in.
struct Gains {
  Tensor a_TE = at::zeros({kTokens, kExperts}, at::kDouble);
  int64_t stood_in = 0;
};

Gains gains_by_definition(const OneLayer& s, const Choice& choice) {
  const Tensor outputs = s.outputs();
  Gains gains;
  for (int64_t t = 0; t < kTokens; ++t) {
    if (s.batch.segment_ids[t] < 0) continue;
    for (int64_t e = 0; e < kExperts; ++e) {
      const auto from = givers(s, choice, t, e);
      for (const int64_t u : from)
        gains.a_TE[t][e] += (s.dy[t] * outputs[u][e]).sum() / static_cast<double>(from.size());
      gains.stood_in += !has(choice, t, e) && !from.empty();
    }
  }
  return gains;
}

TEST(DenseBackpropGroup, ForwardHasTheBitsOfTopKAndSoHaveTheExperts) {
  for (const int64_t top_k : {2, 3}) {
    OneLayer s(top_k), plain(top_k, config_of("topk"));
    const auto own = s.run(), expected = plain.run();
    kernels::expect_same_bits(own.y, expected.y, "y");
    kernels::expect_same_bits(own.dexperts[0].down_EDF, expected.dexperts[0].down_EDF, "down");
    kernels::expect_same_bits(own.dexperts[0].gate_up_E2FD, expected.dexperts[0].gate_up_E2FD, "gate and up");
    kernels::expect_same_bits(s.layer.run(s.batch, s.x, {}).y, plain.layer.run(plain.batch, plain.x, {}).y,
                              "y in evaluation");
    EXPECT_FALSE(own.drouter.equal(expected.drouter)) << "but the router learns something else";
  }
}

TEST(DenseBackpropGroup, WithAllExpertsTheGradientIsExact) {
  OneLayer s(kExperts), plain(kExperts, config_of("topk"));
  const auto own = s.run();
  EXPECT_LT((own.drouter - plain.run().drouter).abs().max().item<double>(), 1e-12);
  const Tensor real = conclave::testing::real_tokens(s.batch, at::kDouble), p = s.probs();
  const Tensor a = at::einsum("td,ted->te", {s.dy, s.outputs()}) * real;
  EXPECT_LT((dlogits(own) - kScale * p * (a - (p * a).sum(1, true))).abs().max().item<double>(), 1e-11);
}

TEST(DenseBackpropGroup, OtherExpertsGiveWhatTheyGaveTokensThatShareAnExpert) {
  for (const int64_t top_k : {2, 3}) {
    OneLayer s(top_k);
    const auto result = s.run();
    const auto [a, stood_in] = gains_by_definition(s, result.decision.choice);
    const Tensor p = s.probs(), expected = kScale * p * (a - (p * a).sum(1, true));
    EXPECT_LT((dlogits(result) - expected).abs().max().item<double>(), 1e-11);
    EXPECT_GT(stood_in, 20 * (kExperts - top_k) / 2) << "half of the others of 22 tokens";
  }
}

// In top-k all logits that were not chosen have the same slope by their probabilities.
TEST(DenseBackpropGroup, LogitsThatWereNotChosenLearnEachItsOwn) {
  OneLayer s(2), plain(2, config_of("topk"));
  const auto own = s.run();
  const Tensor slopes = dlogits(own) / s.probs(), flat = dlogits(plain.run()) / s.probs();
  int64_t apart = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    if (s.batch.segment_ids[t] < 0) continue;
    std::vector<int64_t> others;
    for (int64_t e = 0; e < kExperts; ++e)
      if (!has(own.decision.choice, t, e)) others.push_back(e);
    for (const int64_t e : others) {
      EXPECT_NE(slopes[t][e].item<double>(), 0.0);
      EXPECT_NEAR(flat[t][e].item<double>(), flat[t][others[0]].item<double>(), 1e-12);
      apart += std::abs((slopes[t][e] - slopes[t][others[0]]).item<double>()) > 1e-6;
    }
  }
  EXPECT_GT(apart, kTokens);
}

// Neither what another sequence of the micro-batch has, nor whether there is one, changes a gradient.
TEST(DenseBackpropGroup, ASequenceLearnsFromItselfAlone) {
  OneLayer s(2), other(2), alone(2);
  other.x.narrow(0, kLength, kLength).copy_(random_tensor({kLength, kTokens}, at::kDouble, 9));
  other.dy.narrow(0, kLength, kLength).mul_(-2);
  alone.batch = random_batch(1, kLength, 23, 1);
  for (const int64_t t : {kLength - 2, kLength - 1}) alone.batch.segment_ids[t] = -1, alone.batch.loss_mask[t] = 0;
  for (Tensor* rows : {&alone.x, &alone.dy}) *rows = rows->narrow(0, 0, kLength).contiguous();
  const Tensor dx = alone.run().dx;
  EXPECT_GT(dx.abs().max().item<double>(), 0.1);
  for (const OneLayer* both : {&s, &other})
    EXPECT_LT((both->run().dx.narrow(0, 0, kLength) - dx).abs().max().item<double>(), 1e-12);
}

}  // namespace
}  // namespace conclave::moe
