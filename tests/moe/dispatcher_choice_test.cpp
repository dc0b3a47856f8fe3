// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatcher_choice.h"

#include <gmock/gmock.h>

#include "support/ranks.h"

namespace conclave {
namespace {

using moe::DispatchChoice;
using moe::DispatchType;
using ::testing::HasSubstr;

DispatchChoice chosen(const std::vector<int>& hosts, moe::DispatchNeeds needs) {
  DispatchChoice first;
  test::run_ranks_on(hosts, [&](const comm::Group& ep) {
    const auto choice = choose_dispatcher(DispatchType::kAuto, needs, ep);
    EXPECT_EQ(ep.all_gather_text(choice.reason), std::vector<std::string>(ep.size(), choice.reason));
    if (ep.rank() == 0) first = choice;
  });
  return first;
}

TEST(DispatcherChoiceRanks, OneHostSharesMemoryWhateverTheNeeds) {
  for (const bool bitwise : {false, true}) {
    for (const int64_t k : {1, 2, 64}) {
      const auto choice = chosen({0, 0, 0, 0}, {.top_k = k, .bitwise = bitwise});
      EXPECT_EQ(choice.type, DispatchType::kShared);
      EXPECT_THAT(choice.reason, HasSubstr("shared: the 4 ranks of an ep group are on one host"));
    }
  }
}

TEST(DispatcherChoiceRanks, SeveralHostsWithCanonicalKeepTheOrderOfSums) {
  const auto choice = chosen({0, 0, 1, 1}, {.top_k = 8, .bitwise = true});
  EXPECT_EQ(choice.type, DispatchType::kAllToAll);
  EXPECT_THAT(choice.reason, HasSubstr("4 ranks of an ep group on 2 hosts"));
  EXPECT_THAT(choice.reason, HasSubstr("reduction canonical"));
}

TEST(DispatcherChoiceRanks, SeveralHostsGoByCost) {
  EXPECT_EQ(chosen({0, 1, 2, 3}, {.top_k = 1}).type, DispatchType::kAllToAll);
  EXPECT_EQ(chosen({0, 1}, {.top_k = 8}).type, DispatchType::kAllGather);
  EXPECT_EQ(chosen({0, 0, 0, 0, 1, 1, 1, 1}, {.top_k = 4}).type, DispatchType::kHierarchical);
  const auto reason = chosen({0, 1}, {.top_k = 8}).reason;
  EXPECT_THAT(reason, HasSubstr("allgather: 2 ranks of an ep group on 2 hosts, 8 experts for each token"));
  EXPECT_THAT(reason, HasSubstr("alltoall 44.0, allgather 15.0, hierarchical 31.0"));
}

// Measured on eight ranks: gathering wins above six experts for each token (MegaScale-MoE).
TEST(DispatcherChoice, EightHostsGatherAboveAboutSixExperts) {
  const moe::DispatchPlaces eight{8, 8};
  const auto gathers = [&](int64_t k) {
    return dispatch_cost(DispatchType::kAllGather, eight, k) < dispatch_cost(DispatchType::kAllToAll, eight, k);
  };
  EXPECT_FALSE(gathers(4));
  EXPECT_TRUE(gathers(8));
}

TEST(DispatcherChoice, WhatIsAskedForIsTakenAndOneRankNeedsNone) {
  EXPECT_EQ(choose_dispatcher(DispatchType::kHierarchical, {}, comm::Group()).type, DispatchType::kHierarchical);
  const auto local = choose_dispatcher(DispatchType::kAuto, {.top_k = 8}, comm::Group());
  EXPECT_EQ(local.type, DispatchType::kLocal);
  EXPECT_EQ(local.reason, "");
}

}  // namespace
}  // namespace conclave
