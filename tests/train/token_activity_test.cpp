// SPDX-License-Identifier: Apache-2.0
#include "train/token_activity.h"

#include <gtest/gtest.h>

#include "support/ranks.h"

namespace conclave::train {
namespace {

// A micro-batch of one sequence, padding at its end, and a layer in which each token has so many experts.
struct Routed {
  Batch batch;
  moe::Decision layer;
};

Routed routed(const std::vector<int32_t>& tokens, const std::vector<int32_t>& experts, int64_t padding) {
  Routed made;
  made.batch.sequences = 1;
  made.batch.length = std::ssize(tokens);
  made.batch.tokens = tokens;
  made.batch.segment_ids.assign(tokens.size(), 0);
  moe::Picks picks{{0}, {}};
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (std::ssize(tokens) - static_cast<int64_t>(t) <= padding) made.batch.segment_ids[t] = -1;
    for (int32_t e = 0; e < experts[t]; ++e) picks.ids_C.push_back(e);
    picks.offsets_T1.push_back(static_cast<int32_t>(picks.ids_C.size()));
  }
  const std::vector<uint8_t> keep(picks.ids_C.size(), 1);
  made.layer.routing = moe::make_routing(picks, keep, {0, std::ssize(tokens)}, 4);
  return made;
}

// Word 5 occurs four times with one expert, 6 twice with two, 7 once with four.
Routed frequent_take_fewer() { return routed({5, 6, 5, 7, 5, 6, 5, 9}, {1, 2, 1, 4, 1, 2, 1, 4}, 1); }

TEST(TokenActivity, CountsExpertsByHowOftenATokenOccurs) {
  const Routed one = frequent_take_fewer();
  const moe::Decision* const layers[] = {&one.layer, &one.layer};
  TokenActivity activity(10);
  activity.add(one.batch, layers);
  const auto bands = activity.bands();
  ASSERT_EQ(bands.size(), 2u);
  EXPECT_EQ(bands[0].words, 2) << "padding is no occurrence of word 9";
  EXPECT_EQ(bands[0].tokens, 3);
  EXPECT_DOUBLE_EQ(bands[0].experts, (2 * 2 + 4) / 3.0);
  EXPECT_EQ(bands[1].from, 4);
  EXPECT_EQ(bands[1].tokens, 4);
  EXPECT_DOUBLE_EQ(bands[1].experts, 1.0);
  EXPECT_DOUBLE_EQ(activity.rank_correlation(), -1.0);
}

TEST(TokenActivity, AConstantNumberHasNoCorrelation) {
  const Routed one = routed({5, 5, 6}, {2, 2, 2}, 0);
  const moe::Decision* const layers[] = {&one.layer};
  TokenActivity activity(10);
  EXPECT_TRUE(activity.bands().empty());
  EXPECT_EQ(activity.rank_correlation(), 0);
  activity.add(one.batch, layers);
  EXPECT_EQ(activity.rank_correlation(), 0);
}

// Words that occur equally often share a rank: 1, 2.5, 2.5 against 2, 1, 3.
TEST(TokenActivity, EqualWordsShareTheirRank) {
  const Routed one = routed({5, 6, 6, 7, 7}, {2, 1, 1, 3, 3}, 0);
  const moe::Decision* const layers[] = {&one.layer};
  TokenActivity activity(10);
  activity.add(one.batch, layers);
  EXPECT_NEAR(activity.rank_correlation(), 0, 1e-12);
}

TEST(TokenActivityRanks, AddUpOverRanks) {
  test::run_ranks(2, [](const comm::Group& world) {
    const Routed one = world.rank() == 0 ? frequent_take_fewer() : routed({7}, {2}, 0);
    const moe::Decision* const layers[] = {&one.layer};
    TokenActivity activity(10);
    activity.add(one.batch, layers);
    activity.reduce(world);
    ASSERT_EQ(activity.bands().size(), 2u);
    EXPECT_EQ(activity.bands()[0].tokens, 4);
    EXPECT_DOUBLE_EQ(activity.bands()[0].experts, (2 * 2 + 4 + 2) / 4.0);
  });
}

}  // namespace
}  // namespace conclave::train
