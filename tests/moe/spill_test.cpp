// SPDX-License-Identifier: Apache-2.0
// Drop policy spill (methods.md 7.1).
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/tensor_checks.h"
#include "moe/capacity.h"
#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::MoeLayer;
using conclave::testing::random_batch;
using conclave::testing::Routed;
using kernels::random_tensor;

struct Admitted {
  Choice choice;
  std::vector<uint8_t> keep;
  int64_t dropped;
};

Admitted admitted(const CapacityConfig& config, const Choice& choice, const Routed& setup, int64_t capacity,
                  std::vector<uint8_t> keep) {
  Admitted result{choice, std::move(keep), 0};
  result.dropped = Admission::make(config, true)
                       ->admit(result.choice, {setup.batch, setup.state, setup.moment}, capacity, result.keep);
  return result;
}

// Who takes each pick (-1 = nobody), by trying all experts in the order of a token's logits.
std::vector<int32_t> by_definition(const Choice& choice, std::span<const uint8_t> keep, int64_t capacity,
                                   int64_t hops) {
  const int64_t E = choice.experts, k = choice.picks.count() / choice.tokens();
  std::vector<int32_t> taker(choice.picks.count(), -1);
  std::vector<int64_t> places(E, capacity);
  for (int64_t t = 0; t < choice.tokens(); ++t) {
    std::vector<int32_t> ranked(E), has(choice.picks.of(t).begin(), choice.picks.of(t).end());
    std::iota(ranked.begin(), ranked.end(), 0);
    std::sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) {
      return choice.logits_TE[t][a].item<double>() > choice.logits_TE[t][b].item<double>();
    });
    for (int64_t j = 0; j < k; ++j) {
      if (!keep[t * k + j]) continue;
      std::vector<int32_t> asks{has[j]};
      for (const int32_t e : ranked)
        if (std::count(has.begin(), has.end(), e) == 0 && std::ssize(asks) <= hops) asks.push_back(e);
      for (const int32_t e : asks) {
        if (places[e] == 0) continue;
        --places[e];
        taker[t * k + j] = has[j] = e;
        break;
      }
    }
  }
  return taker;
}

TEST(Spill, SendsEachPickWhereTheDefinitionDoes) {
  int64_t moved = 0, dropped = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const Random random(seed, Purpose::kTest);
    const int64_t T = 1 + static_cast<int64_t>(random.bits(0) % 40), E = 1 + static_cast<int64_t>(random.bits(1) % 9);
    const int64_t k = 1 + static_cast<int64_t>(random.bits(2) % E),
                  capacity = static_cast<int64_t>(random.bits(3) % 12);
    Routed setup({}, {.experts = E, .top_k = k}, T);
    const Choice choice = setup.route(random_tensor({T, E}, at::kDouble, seed));
    std::vector<uint8_t> keep(T * k, 1);
    for (int64_t i = 0; i < T * k; ++i) keep[i] = i / k % 7 != 5;  // padding
    for (const int64_t hops : {int64_t{0}, int64_t{1}, int64_t{2}, E}) {
      CapacityConfig config{.policy = DropPolicy::kSpill};
      config.spill.emplace().hops = hops;
      const auto actual = admitted(config, choice, setup, capacity, keep);
      const auto expected = by_definition(choice, keep, capacity, hops);
      int64_t refused = 0;
      for (int64_t i = 0; i < T * k; ++i) {
        if (!keep[i]) continue;
        EXPECT_EQ(actual.keep[i], expected[i] >= 0) << i;
        refused += expected[i] < 0;
        if (expected[i] < 0) continue;
        EXPECT_EQ(actual.choice.picks.ids_C[i], expected[i]) << i;
        moved += expected[i] != choice.picks.ids_C[i];
      }
      EXPECT_EQ(actual.dropped, refused);
      dropped += refused;
      if (hops > 0) continue;
      const auto plain = admitted({.policy = DropPolicy::kPosition}, choice, setup, capacity, keep);
      EXPECT_EQ(actual.keep, plain.keep) << "without hops it is the policy position";
      EXPECT_FALSE(actual.choice.asked.has_value());
    }
  }
  EXPECT_GT(moved, 25);
  EXPECT_GT(dropped, 100);
}

TEST(Spill, WithRoomForAllNoTokenIsLost) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    for (const int64_t k : {1, 3}) {
      const int64_t T = 30, E = 5;
      Routed setup({}, {.experts = E, .top_k = k}, T);
      Tensor logits = random_tensor({T, E}, at::kDouble, seed);
      logits.select(1, 2).add_(5);  // all want expert 2
      const auto result = admitted({.policy = DropPolicy::kSpill}, setup.route(logits), setup, T * k / E,
                                   std::vector<uint8_t>(T * k, 1));
      for (int64_t t = 0; t < T; ++t)
        EXPECT_GT(std::count(result.keep.begin() + t * k, result.keep.begin() + (t + 1) * k, 1), 0) << t;
      EXPECT_TRUE(k > 1 || result.dropped == 0);
    }
  }
}

MoeConfig spilling(bool renormalize) {
  MoeConfig config;
  config.capacity = {.factor = 0.6, .policy = DropPolicy::kSpill, .renormalize = renormalize, .min = 1};
  return config;
}

TEST(Spill, APickWeighsWhatTheExpertThatTakesItWeighs) {
  const int64_t T = 33;
  const Batch batch = random_batch(1, T, 23, 1);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2);
  MoeLayer layer(spilling(false), {8, 2, 6, 5}, at::kDouble), divided(spilling(true), {8, 2, 6, 5}, at::kDouble);
  divided.make_experts_identical();
  const auto result = layer.run(batch, x, at::zeros_like(x));
  const Choice& choice = result.decision.choice;
  ASSERT_TRUE(choice.asked.has_value());
  int64_t moved = 0;
  for (int64_t i = 0; i < choice.picks.count(); ++i) {
    moved += choice.picks.ids_C[i] != choice.asked->ids_C[i];
    EXPECT_EQ(choice.weights_C[i].item<double>(), choice.probs_TE[i / 2][choice.picks.ids_C[i]].item<double>());
  }
  EXPECT_GT(moved, 3);
  EXPECT_GT(result.decision.statistics.dropped, 0);
  // Of identical experts the sum of the weights is left.
  const auto one = divided.run(batch, x, at::zeros_like(x));
  const Tensor dense = conclave::testing::all_experts(x, divided.weights())[0];
  const auto& offsets = one.decision.routing.token_offsets_T1;
  for (int64_t t = 0; t < T; ++t) {
    const Tensor expected = dense[t] * (offsets[t + 1] > offsets[t] ? 1.0 : 0.0);
    EXPECT_LT((one.y[t] - expected).abs().max().item<double>(), 1e-12) << t;
  }
}

TEST(Spill, LossesCountWhatWasAskedFirst) {
  const Batch batch = random_batch(1, 33, 23, 1);
  const Tensor x = random_tensor({33, 6}, at::kDouble, 2);
  const auto free = MoeLayer({}, {8, 2, 6, 5}, at::kDouble).run(batch, x, at::zeros_like(x)).decision.statistics;
  const auto s =
      MoeLayer(spilling(false), {8, 2, 6, 5}, at::kDouble).run(batch, x, at::zeros_like(x)).decision.statistics;
  EXPECT_EQ(s.chosen_BE, free.chosen_BE);
  EXPECT_EQ(s.first_BE, free.first_BE);
  EXPECT_EQ(s.selected_E, free.selected_E);
  EXPECT_NE(s.dispatched_E, free.dispatched_E);
}

TEST(Spill, GradientsAreThoseOfWhereTokensWent) {
  for (const bool renormalize : {false, true}) {
    const int64_t T = 14;
    MoeLayer layer(spilling(renormalize), {.experts = 4, .top_k = 2}, at::kDouble);
    const Batch batch = random_batch(1, T, 23, 1);
    const Tensor x = random_tensor({T, 6}, at::kDouble, 2), dy = random_tensor({T, 6}, at::kDouble, 3);
    const auto result = layer.run(batch, x, dy);
    ASSERT_TRUE(result.decision.choice.asked.has_value());
    const auto objective = [&](const Tensor& at) { return (layer.run(batch, at, dy).y * dy).sum().item<double>(); };
    for (int64_t i = 0; i < x.numel(); ++i) {
      Tensor up = x.clone(), down = x.clone();
      up.view({-1})[i] += 1e-6, down.view({-1})[i] -= 1e-6;
      EXPECT_NEAR(result.dx.view({-1})[i].item<double>(), (objective(up) - objective(down)) / 2e-6, 1e-7) << i;
    }
  }
}

}  // namespace
}  // namespace conclave::moe
