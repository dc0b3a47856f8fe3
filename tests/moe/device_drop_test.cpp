// SPDX-License-Identifier: Apache-2.0
// Drop policy device (methods.md 2.8): groups of experts with one capacity.
#include <gtest/gtest.h>

#include <algorithm>

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

std::vector<uint8_t> admitted(const CapacityConfig& config, Choice choice, const Routed& setup, int64_t capacity,
                              std::vector<uint8_t> keep) {
  const int64_t before = std::count(keep.begin(), keep.end(), 1);
  const int64_t dropped =
      Admission::make(config, true)->admit(choice, {setup.batch, setup.state, setup.moment}, capacity, keep);
  EXPECT_EQ(dropped, before - std::count(keep.begin(), keep.end(), 1));
  return keep;
}

// Kept if fewer pairs of its group than the budget weigh more, or weigh the same and stand before it.
std::vector<uint8_t> by_definition(const Choice& choice, const std::vector<uint8_t>& asked, int64_t devices,
                                   int64_t capacity) {
  const int64_t size = choice.experts / devices;
  std::vector<uint8_t> keep(asked.size(), 0);
  const auto weight = [&](size_t i) { return choice.weights_C[static_cast<int64_t>(i)].item<double>(); };
  for (size_t i = 0; i < asked.size(); ++i) {
    int64_t before = 0;
    for (size_t j = 0; j < asked.size(); ++j) {
      const bool same = choice.picks.ids_C[i] / size == choice.picks.ids_C[j] / size;
      before += asked[j] && same && (weight(j) > weight(i) || (weight(j) == weight(i) && j < i));
    }
    keep[i] = asked[i] && before < capacity * size;
  }
  return keep;
}

TEST(DeviceDrop, DropsTheLowestAffinitiesOfEachGroupUntilItsBudgetIsMet) {
  int64_t uneven = 0;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    const Random random(seed, Purpose::kTest);
    const int64_t T = static_cast<int64_t>(random.bits(0) % 30), D = 1 + static_cast<int64_t>(random.bits(1) % 4),
                  E = D * (1 + static_cast<int64_t>(random.bits(2) % 3)),
                  k = 1 + static_cast<int64_t>(random.bits(3) % E), capacity = static_cast<int64_t>(random.bits(4) % 9);
    Routed setup({.norm_topk_prob = seed % 3 == 0}, {.experts = E, .top_k = k}, T);
    Tensor logits = random_tensor({T, E}, at::kDouble, seed) * 2.0;
    for (int64_t t = 0; t < T && seed % 2 == 0; ++t) logits[t] = logits[t % 3].clone();  // many equal weights
    const Choice choice = setup.route(logits);
    std::vector<uint8_t> asked(T * k, 1);
    for (int64_t i = 0; i < T * k; ++i) asked[i] = i / k % 7 != 5;  // padding takes no place
    const CapacityConfig config{.policy = DropPolicy::kDevice, .devices = D};
    const auto keep = admitted(config, choice, setup, capacity, asked);
    EXPECT_EQ(keep, by_definition(choice, asked, D, capacity)) << "seed " << seed;
    std::vector<int64_t> load(E, 0);
    for (size_t i = 0; i < keep.size(); ++i) load[choice.picks.ids_C[i]] += keep[i];
    uneven += std::any_of(load.begin(), load.end(), [&](int64_t n) { return n > capacity; });
  }
  EXPECT_GT(uneven, 3) << "an expert uses the room of its neighbours";
}

TEST(DeviceDrop, WithOneExpertInAGroupItIsThePolicyScore) {
  const int64_t T = 40, E = 6;
  Routed setup({}, {.experts = E, .top_k = 2}, T);
  const Choice choice = setup.route(random_tensor({T, E}, at::kDouble, 2));
  const std::vector<uint8_t> all(2 * T, 1);
  const auto keep = admitted({.policy = DropPolicy::kDevice, .devices = E}, choice, setup, 5, all);
  EXPECT_EQ(keep, admitted({.policy = DropPolicy::kScore}, choice, setup, 5, all));
  EXPECT_LT(std::count(keep.begin(), keep.end(), 1), 2 * T);
  const auto whole = admitted({.policy = DropPolicy::kDevice, .devices = 1}, choice, setup, 2 * T / E + 1, all);
  EXPECT_EQ(whole, all) << "one group with room for all drops nobody";
}

TEST(DeviceDrop, EqualWeightsAreAdmittedByPosition) {
  Routed setup({}, {.experts = 4, .top_k = 2}, 10);
  const Choice choice = setup.route(at::zeros({10, 4}, at::kDouble));  // all want experts 0 and 1
  const auto keep =
      admitted({.policy = DropPolicy::kDevice, .devices = 2}, choice, setup, 3, std::vector<uint8_t>(20, 1));
  for (size_t i = 0; i < keep.size(); ++i) EXPECT_EQ(keep[i], i < 6) << i;
}

TEST(DeviceDrop, EvaluationAdmitsByPosition) {
  const CapacityConfig config{.policy = DropPolicy::kDevice, .devices = 2};
  Routed setup({}, {.experts = 4, .top_k = 2}, 30);
  Choice choice = setup.route(random_tensor({30, 4}, at::kDouble, 5));
  const RouteInput in{setup.batch, setup.state, setup.moment};
  std::vector<uint8_t> trained(60, 1), evaluated(60, 1), position(60, 1);
  Admission::make(config, true)->admit(choice, in, 6, trained);
  Admission::make(config, false)->admit(choice, in, 6, evaluated);
  Admission::row(DropPolicy::kPosition).make({})->admit(choice, in, 6, position);
  EXPECT_EQ(evaluated, position);
  EXPECT_NE(trained, evaluated);
}

TEST(DeviceDrop, GradientsAreThoseOfWhatWasKept) {
  MoeConfig config;
  config.capacity = {.factor = 0.6, .policy = DropPolicy::kDevice, .min = 1, .devices = 2};
  const int64_t T = 14;
  MoeLayer layer(config, {.experts = 4, .top_k = 2}, at::kDouble);
  const Batch batch = random_batch(1, T, 23, 1);
  const Tensor x = random_tensor({T, 6}, at::kDouble, 2), dy = random_tensor({T, 6}, at::kDouble, 3);
  const auto result = layer.run(batch, x, dy);
  EXPECT_GT(result.decision.statistics.dropped, 0);
  const auto objective = [&](const Tensor& at) { return (layer.run(batch, at, dy).y * dy).sum().item<double>(); };
  for (int64_t i = 0; i < x.numel(); ++i) {
    Tensor up = x.clone(), down = x.clone();
    up.view({-1})[i] += 1e-6, down.view({-1})[i] -= 1e-6;
    EXPECT_NEAR(result.dx.view({-1})[i].item<double>(), (objective(up) - objective(down)) / 2e-6, 1e-7) << i;
  }
}

}  // namespace
}  // namespace conclave::moe
