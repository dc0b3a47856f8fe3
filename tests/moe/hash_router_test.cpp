// SPDX-License-Identifier: Apache-2.0
// Hash layers (methods.md 8).
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "support/moe_layer.h"
#include "support/routed.h"

namespace conclave::moe {
namespace {

using conclave::testing::Routed;

TEST(HashRouter, TheTokenAloneSaysItsExpertAndNothingLearns) {
  RouterConfig config{.type = "hash"};
  config.hash.emplace().table = HashTable::kRandom;
  Routed setup(config, {.experts = 8, .top_k = 2, .vocab = 23}, 50);
  EXPECT_TRUE(setup.router->blocks(setup.shape).empty());
  const Choice choice = setup.route({});
  std::map<int32_t, std::vector<int32_t>> seen;
  for (int64_t t = 0; t < 50; ++t) {
    const auto ids = choice.picks.of(t);
    EXPECT_NE(ids[0], ids[1]) << "two different experts";
    const auto [at, fresh] = seen.try_emplace(setup.batch.tokens[t], ids.begin(), ids.end());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), at->second.begin()));
  }
  EXPECT_GT(std::set<int32_t>(choice.picks.ids_C.begin(), choice.picks.ids_C.end()).size(), 4u);
  EXPECT_NEAR(choice.weights_C[0].item<double>(), 0.5, 0);
  Routed modulo({.type = "hash"}, {.experts = 8, .top_k = 1, .vocab = 23}, 50);
  for (int64_t t = 0; t < 50; ++t) EXPECT_EQ(modulo.route({}).picks.ids_C[t], modulo.batch.tokens[t] % 8);
}

TEST(HashRouter, OneExpertIsTheDenseFeedForward) {
  MoeConfig config;
  config.router.type = "hash";
  const conclave::testing::MoeLayer layer(config, {.experts = 1, .top_k = 1}, at::kDouble);
  const Tensor x = kernels::random_tensor({9, 6}, at::kDouble, 2);
  const Tensor dense =
      conclave::testing::all_experts(x, {{}, layer.gate_up(0).unsqueeze(0), layer.down(0).unsqueeze(0)})[0];
  const Tensor y = layer.run(conclave::testing::random_batch(1, 9, 23, 1), x, at::zeros_like(x)).y;
  EXPECT_LT((y - dense).abs().max().item<double>(), 1e-12);
}

TEST(HashRouter, ThePreviousTokenCountsWithinItsDocument) {
  RouterConfig config{.type = "hash"};
  config.hash.emplace().feature = HashFeature::kPrevious;
  Routed setup(config, {.experts = 23, .top_k = 1, .vocab = 23}, 10);
  for (int64_t t = 6; t < 10; ++t) setup.batch.segment_ids[t] = 1;
  const auto ids = setup.route({}).picks.ids_C;
  for (int64_t t = 0; t < 10; ++t) EXPECT_EQ(ids[t], setup.batch.tokens[t == 0 || t == 6 ? t : t - 1]);
}

}  // namespace
}  // namespace conclave::moe
