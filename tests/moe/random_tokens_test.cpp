// SPDX-License-Identifier: Apache-2.0
// Drop policies random and bpr (methods.md 8); the others are in capacity_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/tensor_checks.h"
#include "moe/capacity.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::Routed;
using kernels::random_tensor;

std::vector<uint8_t> admitted(DropPolicy policy, Choice choice, const Routed& setup, int64_t capacity) {
  std::vector<uint8_t> keep(choice.picks.count(), 1);
  Admission::row(policy).make({})->admit(choice, {setup.batch, setup.state, setup.moment}, capacity, keep);
  return keep;
}

TEST(RandomTokens, DropsLateTokensNoMoreOftenThanEarlyOnes) {
  const int64_t T = 40, steps = 2000, capacity = 10;
  Routed setup({}, {.experts = 2, .top_k = 1}, T);
  const Choice choice = setup.route(at::zeros({T, 2}, at::kDouble));  // all want expert 0
  std::vector<int64_t> kept(T, 0);
  for (int64_t step = 0; step < steps; ++step) {
    setup.moment.step = step;
    const auto keep = admitted(DropPolicy::kRandom, choice, setup, capacity);
    ASSERT_EQ(std::count(keep.begin(), keep.end(), 1), capacity);
    for (int64_t t = 0; t < T; ++t) kept[t] += keep[t];
  }
  const double p = 0.25, sigma = std::sqrt(steps * p * (1 - p));
  for (int64_t t = 0; t < T; ++t) EXPECT_NEAR(static_cast<double>(kept[t]), steps * p, 4.5 * sigma) << t;
}

TEST(RandomTokens, EveryOrderOfEqualTokensIsDrawnAsOften) {
  const int64_t T = 4, steps = 4800, orders = 24;
  Routed setup({}, {.experts = 2, .top_k = 1}, T);
  const Choice choice = setup.route(at::zeros({T, 2}, at::kDouble));
  const auto policy = Admission::row(DropPolicy::kRandom).make({});
  std::map<std::vector<int32_t>, int64_t> seen;
  for (int64_t step = 0; step < steps; ++step) {
    setup.moment.step = step;
    ++seen[policy->order(choice, {setup.batch, setup.state, setup.moment})];
  }
  ASSERT_EQ(std::ssize(seen), orders);
  const double expected = static_cast<double>(steps) / orders;
  double squares = 0;  // chi square of 23 degrees of freedom
  for (const auto& [order, count] : seen) squares += std::pow(static_cast<double>(count) - expected, 2) / expected;
  EXPECT_LT(squares, 49.7);
}

// Three sequences that change places in the micro-batch, or come to another rank's.
TEST(RandomTokens, TheSameTokensAreDroppedWhereverTheirSequencesStand) {
  const int64_t length = 8, T = 3 * length, E = 4, capacity = 5;
  const std::vector<int64_t> places{2, 0, 1};
  for (const auto policy : {DropPolicy::kRandom, DropPolicy::kScore, DropPolicy::kBpr}) {
    Routed here({}, {.experts = E, .top_k = 2}, T), there({}, {.experts = E, .top_k = 2}, T);
    const Tensor logits = random_tensor({T, E}, at::kDouble, 1);
    Tensor moved = logits.clone();
    for (int64_t s = 0; s < 3; ++s) {
      moved.narrow(0, s * length, length).copy_(logits.narrow(0, places[s] * length, length));
      std::copy_n(here.batch.global_token_ids.begin() + places[s] * length, length,
                  there.batch.global_token_ids.begin() + s * length);
    }
    const auto kept = admitted(policy, here.route(logits), here, capacity),
               kept_there = admitted(policy, there.route(moved), there, capacity);
    EXPECT_LT(std::count(kept.begin(), kept.end(), 1), 2 * T);
    for (int64_t s = 0; s < 3; ++s)
      EXPECT_TRUE(std::equal(kept_there.begin() + 2 * s * length, kept_there.begin() + 2 * (s + 1) * length,
                             kept.begin() + 2 * places[s] * length))
          << "policy " << int(policy) << " sequence " << places[s];
  }
}

TEST(BatchPrioritised, TheMostCertainTokensComeFirst) {
  const int64_t T = 48, E = 4, k = 2, capacity = 8;
  Routed setup({}, {.experts = E, .top_k = k}, T);
  const Choice choice = setup.route(random_tensor({T, E}, at::kDouble, 1));
  const auto keep = admitted(DropPolicy::kBpr, choice, setup, capacity);
  for (int32_t e = 0; e < E; ++e) {
    double least_kept = 2, most_dropped = -1;
    bool second_kept = false, first_dropped = false;
    for (int64_t t = 0; t < T; ++t) {
      const double gate = choice.weights_C[t * k].item<double>();
      if (choice.picks.ids_C[t * k] == e) {
        (keep[t * k] ? least_kept : most_dropped) =
            keep[t * k] ? std::min(least_kept, gate) : std::max(most_dropped, gate);
        first_dropped = first_dropped || !keep[t * k];
      }
      second_kept = second_kept || (choice.picks.ids_C[t * k + 1] == e && keep[t * k + 1]);
    }
    EXPECT_GE(least_kept, most_dropped) << e;
    EXPECT_FALSE(second_kept && first_dropped) << "a second pick took a first one's place at expert " << e;
  }
  for (const auto policy : {DropPolicy::kBpr, DropPolicy::kRandom}) {
    const auto all = admitted(policy, choice, setup, T);
    EXPECT_EQ(std::count(all.begin(), all.end(), 1), T * k);
  }
}

}  // namespace
}  // namespace conclave::moe
