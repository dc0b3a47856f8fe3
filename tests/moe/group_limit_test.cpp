// SPDX-License-Identifier: Apache-2.0
// Experts of the best groups only: DeepSeek-V2's devices and -V3's nodes (methods.md 8).
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "kernels/tensor_checks.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::Routed;
using kernels::random_tensor;

// The k best experts of the best `kept` of `groups`, by trying all subsets of groups.
std::set<int32_t> best_of_groups(const Tensor& selection, int64_t groups, int64_t kept, int64_t counted, int64_t k) {
  const int64_t E = selection.size(0), size = E / groups;
  double best = -1e300;
  std::set<int32_t> result;
  for (int mask = 0; mask < (1 << groups); ++mask) {
    if (__builtin_popcount(mask) != kept) continue;
    double value = 0;
    std::vector<std::pair<double, int32_t>> inside;
    for (int64_t g = 0; g < groups; ++g) {
      if (!(mask >> g & 1)) continue;
      std::vector<double> own;
      for (int64_t e = g * size; e < (g + 1) * size; ++e) {
        own.push_back(selection[e].item<double>());
        inside.push_back({-own.back(), static_cast<int32_t>(e)});
      }
      std::sort(own.rbegin(), own.rend());
      value += std::accumulate(own.begin(), own.begin() + counted, 0.0);
    }
    if (value <= best) continue;
    best = value;
    std::sort(inside.begin(), inside.end());
    result.clear();
    for (int64_t i = 0; i < k; ++i) result.insert(inside[i].second);
  }
  return result;
}

TEST(GroupLimit, TakesTheBestExpertsOfTheBestGroups) {
  const int64_t T = 40, E = 16, k = 4;
  for (const auto score : {Score::kSoftmax, Score::kSigmoid}) {
    RouterConfig config{
        .score = score, .norm_topk_prob = true, .routed_scaling_factor = 2.5, .n_group = 4, .topk_group = 2};
    Routed setup(config, {.experts = E, .top_k = k}, T);
    Tensor bias = random_tensor({E}, at::kFloat, 2) - 3.0;  // biased scores are negative: zero would be the best
    setup.state.declare("bias", bias);
    const Choice choice = setup.route(random_tensor({T, E}, at::kDouble, 1));
    for (int64_t t = 0; t < T; ++t) {
      const auto ids = choice.picks.of(t);
      const auto expected = best_of_groups(choice.probs_TE[t] + bias, 4, 2, score == Score::kSigmoid ? 2 : 1, k);
      EXPECT_EQ(std::set<int32_t>(ids.begin(), ids.end()), expected) << t;
      std::set<int32_t> touched;
      for (const int32_t id : ids) touched.insert(id / 4);
      EXPECT_LE(touched.size(), 2u);
      EXPECT_NEAR(choice.weights_C.narrow(0, t * k, k).sum().item<double>(), 2.5, 1e-12);
    }
    Routed shifted(config, {.experts = E, .top_k = k}, T);
    shifted.state.declare("bias", bias + 0.25);
    EXPECT_EQ(shifted.route(random_tensor({T, E}, at::kDouble, 1)).picks, choice.picks) << "a constant changes nothing";
  }
}

TEST(GroupLimit, AllGroupsOrOneIsPlainTopK) {
  const Tensor logits = random_tensor({40, 16}, at::kDouble, 1);
  const auto plain = Routed({}, {.experts = 16, .top_k = 4}, 40).route(logits).picks;
  EXPECT_EQ(Routed({.n_group = 8, .topk_group = 8}, {.experts = 16, .top_k = 4}, 40).route(logits).picks, plain);
  EXPECT_NE(Routed({.n_group = 8, .topk_group = 2}, {.experts = 16, .top_k = 4}, 40).route(logits).picks, plain);
}

}  // namespace
}  // namespace conclave::moe
