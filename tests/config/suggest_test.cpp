// SPDX-License-Identifier: Apache-2.0
#include "config/suggest.h"

#include <gmock/gmock.h>

namespace conclave::config {
namespace {

TEST(Suggest, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("top_k", "top_k", 2), 0);
  EXPECT_EQ(edit_distance("topk", "top_k", 2), 1);
  EXPECT_EQ(edit_distance("top__k", "top_k", 2), 1);
  EXPECT_EQ(edit_distance("tup_k", "top_k", 2), 1);
  EXPECT_EQ(edit_distance("otp_k", "top_k", 2), 1);
  EXPECT_EQ(edit_distance("ot_pk", "top_k", 2), 2);
  EXPECT_EQ(edit_distance("abcdef", "ghijkl", 2), 3);
  EXPECT_EQ(edit_distance("", "ab", 2), 2);
  EXPECT_EQ(edit_distance("a", "abcdefgh", 2), 3);
}

TEST(Suggest, FindsTheNearestAndNothingForStrangers) {
  const std::vector<std::string> words = {"steps", "seed", "precision", "global_batch_size"};
  EXPECT_EQ(nearest("step", words), "steps");
  EXPECT_EQ(nearest("sede", words), "seed");
  EXPECT_EQ(nearest("precison", words), "precision");
  EXPECT_EQ(nearest("glob", words), "global_batch_size");  // the only one that begins so
  EXPECT_EQ(nearest("s", words), "");
  EXPECT_EQ(nearest("banana", words), "");
}

TEST(Suggest, ShortWordsNeedToBeVeryNear) {
  const std::vector<std::string> words = {"dp", "tp", "ep"};
  EXPECT_EQ(nearest("xy", words), "");
  EXPECT_EQ(nearest("pd", words), "dp");
}

TEST(Suggest, KnowsFlagsAndKeysOfOtherStacks) {
  EXPECT_EQ(known_elsewhere_as("num_experts_per_tok"), "moe.top_k");
  EXPECT_EQ(known_elsewhere_as("--micro-batch-size"), "");  // the same word as ours, found as a key
  EXPECT_EQ(known_elsewhere_as("--moe-router-topk"), "moe.top_k");
  EXPECT_EQ(known_elsewhere_as("--train-iters=100"), "train.steps");
  EXPECT_EQ(known_elsewhere_as("nothing_like_it"), "");
}

TEST(Suggest, NamesEveryAliasOnce) {
  std::vector<std::string> names;
  for (const auto& [name, answer] : aliases()) names.push_back(name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

}  // namespace
}  // namespace conclave::config
