// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatcher_choice.h"

#include <gmock/gmock.h>

#include "support/ranks.h"

namespace conclave {
namespace {

using moe::DispatchChoice;
using moe::DispatchType;
using ::testing::HasSubstr;

DispatchChoice chosen(const std::vector<int>& hosts, const moe::DispatchNeeds& needs,
                      DispatchType type = DispatchType::kAuto) {
  DispatchChoice first;
  test::run_ranks_on(hosts, [&](const comm::Group& ep) {
    const auto choice = choose_dispatcher(type, needs, ep, moe::host_memory(ep));
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

// All ep groups of a host take from one /dev/shm, so what two of its ranks would find enough is not enough for eight.
TEST(DispatcherChoiceRanks, SharedMemoryIsCountedForAllRanksOfTheHost) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  const auto with = [](const moe::HostMemory& memory) {
    DispatchChoice choice;
    test::run_ranks(2, [&](const comm::Group& ep) {
      const auto mine = choose_dispatcher(DispatchType::kAuto, {}, ep, memory);
      if (ep.rank() == 0) choice = mine;
    });
    return choice;
  };
  EXPECT_EQ(with({.ranks = 2, .bytes = 512 * kMiB}).type, DispatchType::kShared);
  EXPECT_EQ(with({.ranks = 2, .bytes = 511 * kMiB}).type, DispatchType::kAllToAll);
  const auto choice = with({.ranks = 8, .bytes = 512 * kMiB});
  EXPECT_EQ(choice.type, DispatchType::kAllToAll);
  EXPECT_THAT(choice.reason, HasSubstr("/dev/shm has 512 MiB left for the 8 ranks of the host"));
  EXPECT_EQ(with({.ranks = 8, .bytes = 2048 * kMiB}).type, DispatchType::kShared);
}

TEST(DispatcherChoiceRanks, HostMemoryKnowsAllRanksOfAHost) {
  test::run_ranks_on({0, 1, 0, 0}, [](const comm::Group& world) {
    EXPECT_EQ(moe::host_memory(world).ranks, world.rank() == 1 ? 1 : 3);
    EXPECT_EQ(moe::host_memory(world).bytes, std::numeric_limits<int64_t>::max()) << "threads need none";
  });
}

TEST(DispatcherChoiceRanks, RoundedRowsMakeLinksCheaper) {
  const moe::DispatchNeeds same{.top_k = 2}, bf16{.top_k = 2, .payload = moe::DispatchPayload::kBf16};
  // Half of what crosses: 5 · 2 · 3/4 of 13.5.
  EXPECT_THAT(chosen({0, 1, 2, 3}, same).reason, HasSubstr("alltoall 13.5, allgather 21.0, hierarchical 16.6"));
  EXPECT_THAT(chosen({0, 1, 2, 3}, bf16).reason, HasSubstr("alltoall 9.8, allgather 13.5, hierarchical 13.3"));
  EXPECT_THAT(chosen({0, 1}, bf16).reason, HasSubstr("; rows between hosts as bf16"));
  const moe::DispatchNeeds fp8{.top_k = 2, .payload = moe::DispatchPayload::kFp8};
  EXPECT_THAT(chosen({0, 1, 2, 3}, fp8).reason, HasSubstr("alltoall 7.9, allgather 9.8, hierarchical 11.6"));
  EXPECT_THAT(chosen({0, 1}, fp8).reason, HasSubstr("; rows between hosts as fp8"));
}

TEST(DispatcherChoiceRanks, RoundingThatChangesNothingIsSaid) {
  const moe::DispatchNeeds bf16{.top_k = 2, .payload = moe::DispatchPayload::kBf16};
  const auto nothing = HasSubstr("payload bf16 changes nothing: no row crosses between hosts");
  EXPECT_EQ(chosen({0, 0}, bf16).type, DispatchType::kShared);
  EXPECT_THAT(chosen({0, 0}, bf16).reason, nothing);
  EXPECT_THAT(chosen({0}, bf16).reason, nothing);
  EXPECT_THAT(chosen({0, 0}, bf16, DispatchType::kAllToAll).reason, nothing);
  EXPECT_EQ(chosen({0, 1}, bf16, DispatchType::kAllToAll).reason, "rows between hosts as bf16");
  auto fp8 = bf16;
  fp8.payload = moe::DispatchPayload::kFp8;
  EXPECT_THAT(chosen({0}, fp8).reason, HasSubstr("payload fp8 changes nothing"));
  auto spread = bf16;
  spread.parts_over_hosts = true;
  EXPECT_EQ(chosen({0, 0}, spread, DispatchType::kAllToAll).reason, "rows between hosts as bf16");
}

// Measured on eight ranks: gathering wins above six experts for each token (MegaScale-MoE).
TEST(DispatcherChoice, EightHostsGatherAboveAboutSixExperts) {
  const moe::DispatchPlaces eight{8, 8};
  const auto gathers = [&](int64_t k) {
    const moe::DispatchNeeds needs{.top_k = k};
    return dispatch_cost(DispatchType::kAllGather, eight, needs) < dispatch_cost(DispatchType::kAllToAll, eight, needs);
  };
  EXPECT_FALSE(gathers(4));
  EXPECT_TRUE(gathers(8));
}

TEST(DispatcherChoice, WhatIsAskedForIsTakenAndOneRankNeedsNone) {
  EXPECT_EQ(choose_dispatcher(DispatchType::kHierarchical, {}, comm::Group(), {}).type, DispatchType::kHierarchical);
  const auto local = choose_dispatcher(DispatchType::kAuto, {.top_k = 8}, comm::Group(), {});
  EXPECT_EQ(local.type, DispatchType::kLocal);
  EXPECT_EQ(local.reason, "");
}

}  // namespace
}  // namespace conclave
