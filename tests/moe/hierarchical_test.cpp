// SPDX-License-Identifier: Apache-2.0
// Two levels of gates (methods.md 7.1).
#include <gtest/gtest.h>

#include <map>

#include "kernels/tensor_checks.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::Routed;
using kernels::random_tensor;

RouterConfig two_levels(int64_t groups, int64_t group_k, RouterConfig config) {
  config.type = "hierarchical";
  config.hierarchical = {.groups = groups, .group_k = group_k};
  return config;
}

// The forms of top-k routing that either gate may have.
const std::vector<RouterConfig> kForms = {
    {}, {.norm_topk_prob = true}, {.score_before_topk = false, .routed_scaling_factor = 1.5}};

std::map<int32_t, double> weights_of(const Choice& choice, int64_t t) {
  std::map<int32_t, double> weights;
  for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
    weights[choice.picks.ids_C[i]] = choice.weights_C[i].item<double>();
  return weights;
}

void expect_equal(const Choice& actual, const Choice& expected) {
  for (int64_t t = 0; t < expected.tokens(); ++t) {
    const auto own = weights_of(actual, t), other = weights_of(expected, t);
    ASSERT_EQ(own.size(), other.size());
    for (const auto& [id, weight] : other) EXPECT_NEAR(own.at(id), weight, 1e-14) << t << " " << id;
  }
}

TEST(Hierarchical, OneGroupIsFlatTopK) {
  const Tensor scores = random_tensor({20, 7}, at::kDouble, 1);  // 1 group, 6 experts
  for (const auto& form : kForms) {
    Routed two(two_levels(1, 1, form), {.experts = 6, .top_k = 2}, 20), flat(form, {.experts = 6, .top_k = 2}, 20);
    expect_equal(two.route(scores), flat.route(scores.narrow(1, 1, 6).contiguous()));
  }
}

TEST(Hierarchical, OneExpertInEachGroupIsFlatTopK) {
  const Tensor scores = random_tensor({20, 12}, at::kDouble, 1);  // 6 groups of 1
  for (const auto& form : kForms) {
    Routed two(two_levels(6, 2, form), {.experts = 6, .top_k = 2}, 20), flat(form, {.experts = 6, .top_k = 2}, 20);
    expect_equal(two.route(scores), flat.route(scores.narrow(1, 0, 6).contiguous()));
  }
}

TEST(Hierarchical, WeightsOfBothLevelsMultiply) {
  const int64_t T = 20, groups = 3, members = 4;
  const Tensor scores = random_tensor({T, groups + groups * members}, at::kDouble, 1);
  Routed two(two_levels(groups, 2, {.score_before_topk = false}), {.experts = 12, .top_k = 4}, T);
  const Choice choice = two.route(scores);
  Routed upper({.score_before_topk = false}, {.experts = groups, .top_k = 2}, T),
      lower({.score_before_topk = false}, {.experts = members, .top_k = 2}, T);
  const Choice of_groups = upper.route(scores.narrow(1, 0, groups).contiguous());
  for (int64_t t = 0; t < T; ++t) {
    std::map<int32_t, double> expected;
    for (const auto& [g, weight] : weights_of(of_groups, t)) {
      const Choice inside = lower.route(scores.narrow(1, groups + g * members, members).contiguous());
      for (const auto& [m, own] : weights_of(inside, t)) expected[static_cast<int32_t>(g * members + m)] = weight * own;
    }
    const auto actual = weights_of(choice, t);
    ASSERT_EQ(actual.size(), expected.size());
    for (const auto& [id, weight] : expected) EXPECT_NEAR(actual.at(id), weight, 1e-14);
  }
}

TEST(Hierarchical, LossesSeeAProbabilityOverAllExperts) {
  Routed two(two_levels(3, 2, {}), {.experts = 12, .top_k = 4}, 20);
  const Choice choice = two.route(random_tensor({20, 15}, at::kDouble, 1));
  EXPECT_LT((choice.probs_TE.sum(1) - 1).abs().max().item<double>(), 1e-14);
  EXPECT_LT((choice.logits_TE.exp() - choice.probs_TE).abs().max().item<double>(), 1e-14);
}

TEST(Hierarchical, PicksFromOutsideAreWeighedAsTheirOwn) {
  Routed two(two_levels(3, 2, {.norm_topk_prob = true}), {.experts = 12, .top_k = 4}, 20);
  const Choice own = two.route(random_tensor({20, 15}, at::kDouble, 1));
  Choice taken = two.route(random_tensor({20, 15}, at::kDouble, 2));
  taken.scores_TS = own.scores_TS;
  taken.picks = own.picks;
  two.router->weigh(taken, {two.batch, two.state, two.moment, at::kDouble});
  kernels::expect_same_bits(taken.weights_C, own.weights_C, "weights");
}

}  // namespace
}  // namespace conclave::moe
