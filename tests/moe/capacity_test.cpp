// SPDX-License-Identifier: Apache-2.0
// Capacity and drop policies against an O(T·E) definition (methods.md 2.8).
#include "moe/capacity.h"

#include <gtest/gtest.h>

#include "kernels/tensor_checks.h"
#include "moe/router.h"
#include "support/moe_layer.h"
#include "support/tiny_models.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using kernels::random_tensor;

TEST(Capacity, IsTheCeilingOfItsShareAndAtLeastTheMinimum) {
  CapacityConfig config;
  EXPECT_FALSE(expert_capacity(config, true, 100, 2, 8).has_value());
  config.factor = 1.25;
  EXPECT_EQ(*expert_capacity(config, true, 100, 2, 8), 32);  // 31.25
  EXPECT_EQ(*expert_capacity(config, true, 128, 2, 8), 40);  // exactly 40
  EXPECT_EQ(*expert_capacity(config, true, 8, 1, 8), 4);
  config.factor = 1.1;
  EXPECT_EQ(*expert_capacity(config, true, 100, 2, 20), 11);  // exactly 11, though 1.1 in binary is more than 11/10
  EXPECT_EQ(*expert_capacity(config, true, 101, 2, 20), 12);
  config.factor = 1.25;
  config.min = 1;
  EXPECT_EQ(*expert_capacity(config, true, 8, 1, 8), 2);
  EXPECT_EQ(*expert_capacity(config, false, 128, 2, 8), 40);
  config.eval_factor = 2.0;
  EXPECT_EQ(*expert_capacity(config, false, 128, 2, 8), 64);
  EXPECT_EQ(*expert_capacity(config, true, 128, 2, 8), 40);
}

Choice routed(const RouterConfig& config, int64_t top_k, const Tensor& logits) {
  return Router::make(config, {logits.size(1), top_k})->route(logits, {{}, {}, {}});
}

int64_t drop_over_capacity(Choice choice, DropPolicy policy, int64_t capacity, std::span<uint8_t> keep) {
  return Admission::row(policy).make({})->admit(choice, {{}, {}, {}}, capacity, keep);
}

// Admitted pairs as a [T, E] mask.
Tensor admitted(const Choice& choice, DropPolicy policy, int64_t capacity, std::vector<uint8_t> keep,
                int64_t& dropped) {
  dropped = drop_over_capacity(choice, policy, capacity, keep);
  Tensor mask = at::zeros(choice.logits_TE.sizes(), at::kDouble);
  const int64_t k = choice.picks.count() / choice.tokens();
  for (int64_t i = 0; i < std::ssize(keep); ++i)
    if (keep[i]) mask[i / k][choice.picks.ids_C[i]] = 1.0;
  return mask;
}

TEST(Capacity, AdmitsThePairsOfTheDefinition) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const Random random(seed, Purpose::kTest);
    const int64_t T = 1 + static_cast<int64_t>(random.bits(0) % 40), E = 1 + static_cast<int64_t>(random.bits(1) % 9);
    const int64_t k = 1 + static_cast<int64_t>(random.bits(2) % E),
                  capacity = static_cast<int64_t>(random.bits(3) % 12);
    Tensor logits = random_tensor({T, E}, at::kDouble, seed);
    for (int64_t t = 0; t < T && seed % 2 == 0; ++t) logits[t] = logits[t % 3].clone();  // many equal weights
    const auto choice = routed({}, k, logits);
    Tensor weights = at::zeros({T, E}, at::kDouble), mask = at::zeros({T, E}, at::kDouble);
    std::vector<uint8_t> keep(T * k, 1);
    for (int64_t i = 0; i < T * k; ++i) {
      if (i / k % 7 == 5) keep[i] = 0;  // padding
      if (keep[i]) mask[i / k][choice.picks.ids_C[i]] = 1.0;
      weights[i / k][choice.picks.ids_C[i]] = choice.weights_C[i];
    }
    for (const auto policy : {DropPolicy::kPosition, DropPolicy::kScore, DropPolicy::kSlot, DropPolicy::kBpr}) {
      const Tensor expected = conclave::testing::admitted_by_definition(weights, mask, policy, capacity);
      int64_t dropped = 0;
      const Tensor actual = admitted(choice, policy, capacity, keep, dropped);
      EXPECT_TRUE(actual.equal(expected)) << "seed " << seed << " policy " << int(policy);
      EXPECT_EQ(dropped, (mask - expected).sum().item<double>()) << seed;
    }
  }
}

TEST(CapacityGshard, SecondChoicesNeverDisplaceFirstOnes) {
  int64_t contested = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const int64_t T = 24, E = 4, k = 2;
    const auto choice = routed({}, k, random_tensor({T, E}, at::kDouble, seed));
    std::vector<uint8_t> keep(T * k, 1);
    const int64_t dropped = drop_over_capacity(choice, DropPolicy::kSlot, 7, keep);
    EXPECT_EQ(dropped, std::count(keep.begin(), keep.end(), 0));
    for (int64_t e = 0; e < E; ++e) {
      std::vector<uint8_t> asked;  // of this expert, first choices in token order, then second ones
      for (int64_t slot = 0; slot < k; ++slot)
        for (int64_t t = 0; t < T; ++t)
          if (choice.picks.ids_C[t * k + slot] == e) asked.push_back(keep[t * k + slot]);
      EXPECT_TRUE(std::is_sorted(asked.rbegin(), asked.rend())) << "who came first is admitted, seed " << seed;
      EXPECT_EQ(std::count(asked.begin(), asked.end(), 1), std::min<int64_t>(7, std::ssize(asked)));
      contested += std::ssize(asked) > 7;
    }
  }
  EXPECT_GT(contested, 20) << "the test needs full experts";
}

TEST(Capacity, TiesAreAdmittedByPosition) {
  const auto choice = routed({}, 2, at::zeros({10, 4}));
  for (const auto policy : {DropPolicy::kPosition, DropPolicy::kScore}) {
    int64_t dropped = 0;
    const Tensor mask = admitted(choice, policy, 3, std::vector<uint8_t>(20, 1), dropped);
    for (int64_t t = 0; t < 10; ++t)
      for (int64_t e = 0; e < 4; ++e) EXPECT_EQ(mask[t][e].item<double>(), e < 2 && t < 3 ? 1.0 : 0.0) << t << " " << e;
    EXPECT_EQ(dropped, 14);
  }
}

MoeConfig dropping(DropPolicy policy, double factor) {
  MoeConfig config;
  config.capacity = {.factor = factor, .policy = policy, .min = 1};
  return config;
}

TEST(Capacity, StatisticsCountChoicesBeforeDrops) {
  const Batch batch = conclave::testing::random_batch(1, 33, 23, 1);
  const Tensor x = random_tensor({33, 6}, at::kFloat, 2);
  const auto whole = MoeLayer({}, {8, 2, 6, 5}, at::kFloat).run(batch, x, at::zeros_like(x)).decision.statistics;
  for (const auto policy : {DropPolicy::kPosition, DropPolicy::kScore}) {
    const auto s =
        MoeLayer(dropping(policy, 0.5), {8, 2, 6, 5}, at::kFloat).run(batch, x, at::zeros_like(x)).decision.statistics;
    EXPECT_EQ(s.chosen_BE, whole.chosen_BE);
    EXPECT_EQ(s.selected_E, whole.selected_E);
    EXPECT_GT(s.dropped, 0);
    int64_t dispatched = 0;
    for (const int64_t count : s.dispatched_E) {
      EXPECT_LE(count, 5);  // ceil(0.5 * 2 * 33 / 8)
      dispatched += count;
    }
    EXPECT_EQ(dispatched + s.dropped, 66);
  }
}

TEST(Capacity, ATokenWhoseChoicesAreAllDroppedGivesZeros) {
  auto config = dropping(DropPolicy::kPosition, 1e-9);
  config.balance.bias.update_rate = 1.0;
  MoeLayer layer(config, {4, 1, 6, 5}, at::kFloat);
  layer.state().values<float>("bias")[2] = 10.0f;  // everyone to expert 2, which takes one
  const Tensor x = random_tensor({9, 6}, at::kFloat, 2);
  const auto result = layer.run(conclave::testing::random_batch(1, 9, 23, 1), x, random_tensor({9, 6}, at::kFloat, 3));
  EXPECT_GT(result.y[0].abs().max().item<float>(), 0.0f);
  EXPECT_EQ(result.y.narrow(0, 1, 8).abs().max().item<float>(), 0.0f);
  EXPECT_EQ(result.dx.narrow(0, 1, 8).abs().max().item<float>(), 0.0f);
}

TEST(Capacity, RenormalisedSurvivorsSumToTheScalingFactor) {
  auto config = dropping(DropPolicy::kPosition, 0.5);
  config.capacity.renormalize = true;
  config.router.routed_scaling_factor = 2.5;
  MoeLayer layer(config, {8, 2, 6, 5}, at::kDouble);
  layer.make_experts_identical();  // then y = (sum of weights) * expert(x)
  const Tensor x = random_tensor({33, 6}, at::kDouble, 2);
  const auto result = layer.run(conclave::testing::random_batch(1, 33, 23, 1), x, at::zeros_like(x));
  const Tensor dense = conclave::testing::all_experts(x, layer.weights())[0];
  const auto& offsets = result.decision.routing.token_offsets_T1;
  int alone = 0;
  for (int64_t t = 0; t < 33; ++t) {
    const int64_t survivors = offsets[t + 1] - offsets[t];
    alone += survivors == 1;
    const Tensor expected = dense[t] * (survivors == 0 ? 0.0 : 2.5);
    EXPECT_LT((result.y[t] - expected).abs().max().item<double>(), 1e-12) << t << ": " << survivors;
  }
  EXPECT_GT(alone, 0);
}

}  // namespace
}  // namespace conclave::moe
