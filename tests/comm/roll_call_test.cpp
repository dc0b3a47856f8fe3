// SPDX-License-Identifier: Apache-2.0
#include "comm/roll_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "comm/watchdog.h"
#include "support/ranks.h"

namespace conclave::comm {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::vector<std::string> kHosts{"a", "a", "b"};

RollCall::Answer waits(const char* collective, int64_t step) { return {true, step, "step", collective}; }

TEST(RollCallRanksTest, SaysWhatEachRankDoesAndWhoIsGone) {
  test::run_ranks(3, [](const Group& group) {
    const auto activity = std::make_shared<Activity>();
    activity->beat(10 + group.rank(), "data");
    if (group.rank() == 1) activity->enter("all_reduce");
    std::optional<RollCall> roll_call(std::in_place, group, kHosts, activity);
    const auto all = roll_call->ask(20);
    group.barrier();
    for (int r = 0; r < 3; ++r) {
      ASSERT_TRUE(all[r].present) << r;
      EXPECT_EQ(all[r].step, 10 + r);
      EXPECT_EQ(all[r].operation, "data");
      EXPECT_EQ(all[r].collective, r == 1 ? "all_reduce" : "");
    }
    if (group.rank() == 2) roll_call.reset();
    group.barrier();
    if (group.rank() == 0) {
      const auto some = roll_call->ask(0.5);
      EXPECT_TRUE(some[0].present && some[1].present);
      EXPECT_FALSE(some[2].present);
    }
    group.barrier();
  });
}

TEST(RollCallTest, NamesTheSilentBeforeTheLate) {
  const std::string text = describe_absence({waits("barrier", 4), {true, 4, "data", ""}, {}}, kHosts);
  EXPECT_EQ(text, "No answer from rank 2 on b: stopped, dead, or cut off");
}

TEST(RollCallTest, DoubtsTheNetworkWhenNobodyAnswers) {
  EXPECT_THAT(describe_absence({waits("barrier", 4), {}, {}}, kHosts),
              HasSubstr("ranks 1 on a, 2 on b: stopped, dead, or cut off (or UDP"));
}

TEST(RollCallTest, NamesWhoIsNotInTheCollective) {
  EXPECT_EQ(describe_absence({waits("barrier", 4), {true, 4, "data", ""}, waits("barrier", 4)}, kHosts),
            "It is rank 1 on a that keeps the others waiting, in data of step 4");
}

TEST(RollCallTest, SaysWhoWaitsWhereWhenAllWait) {
  EXPECT_EQ(describe_absence({waits("barrier", 4), waits("barrier", 4), waits("all_reduce", 4)}, kHosts),
            "All ranks answer: rank 2 on b in all_reduce of step 4, ranks 0-1 on a in barrier of step 4");
  EXPECT_THAT(describe_absence(std::vector(3, waits("barrier", 4)), kHosts), HasSubstr("network"));
}

// Rank 2 hangs; of the two that wait only the lower speaks, although both are out of patience.
TEST(RollCallRanksTest, TheLowestOfThoseWhoWaitSpeaksAndNamesWhoDoesNot) {
  std::vector<std::string> said(3);
  test::run_ranks(3, [&](const Group& group) {
    const auto activity = std::make_shared<Activity>();
    const RollCall roll_call(group, kHosts, activity);
    if (group.rank() < 2) {
      activity->enter("all_reduce");
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(7500);
      Watchdog watchdog(0.1, group.rank(), activity, &roll_call,
                        [&](const std::string& report) { said[group.rank()] = report; });
      std::this_thread::sleep_until(end);
    }
    group.barrier();
  });
  EXPECT_THAT(said[0], HasSubstr("It waits in all_reduce. It is rank 2 on b that keeps the others waiting"));
  EXPECT_EQ(said[1], "");
}

}  // namespace
}  // namespace conclave::comm
