// SPDX-License-Identifier: Apache-2.0
#include "comm/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

namespace conclave::comm {
namespace {

using testing::HasSubstr;

TEST(WatchdogTest, SaysWhichRankStepAndOperationStoodStill) {
  std::promise<std::string> reported;
  Watchdog watchdog(0.1, 3, nullptr, nullptr, [&](const std::string& report) { reported.set_value(report); });
  watchdog.beat(41, "reduce gradients");
  auto future = reported.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  const std::string report = future.get();
  EXPECT_THAT(report, HasSubstr("rank 3: nothing has moved for 0."));
  EXPECT_THAT(report, HasSubstr("step 41, in reduce gradients"));
}

TEST(WatchdogTest, StaysQuietWhileTheStepBeats) {
  std::atomic<int> fired{0};
  {
    Watchdog watchdog(1.0, 0, nullptr, nullptr, [&](const std::string&) { ++fired; });
    for (int i = 0; i < 30; ++i) {
      watchdog.beat(i, "forward");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
  EXPECT_EQ(fired, 0);
}

TEST(WatchdogTest, WhoWaitsForOthersLetsThemSpeakFirst) {
  const auto hangs = std::make_shared<Activity>(), waits = std::make_shared<Activity>();
  waits->enter("all_reduce");
  std::promise<std::string> first, second;
  Watchdog waiting(0.1, 0, waits, nullptr, [&](const std::string& report) { second.set_value(report); });
  Watchdog hanging(0.1, 1, hangs, nullptr, [&](const std::string& report) { first.set_value(report); });
  auto late = second.get_future();
  EXPECT_THAT(first.get_future().get(), HasSubstr("rank 1: nothing has moved"));
  EXPECT_EQ(late.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  EXPECT_THAT(late.get(), HasSubstr("It waits in all_reduce for a peer"));
}

TEST(WatchdogTest, SaysThatARankWaitsForItsGpu) {
  const auto waits = std::make_shared<Activity>();
  const Inside inside(*waits, kDeviceWait);
  std::promise<std::string> reported;
  Watchdog watchdog(0.1, 0, waits, nullptr, [&](const std::string& report) { reported.set_value(report); });
  EXPECT_THAT(reported.get_future().get(),
              HasSubstr("It waits for its GPU, where something that was started does not end"));
}

TEST(WatchdogTest, ZeroSecondsWatchNothing) {
  std::atomic<int> fired{0};
  {
    Watchdog watchdog(0, 0, nullptr, nullptr, [&](const std::string&) { ++fired; });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_EQ(fired, 0);
}

TEST(WatchdogTest, TheDefaultActionExitsWith80) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        const Watchdog watchdog(0.05, 1, nullptr);
        std::this_thread::sleep_for(std::chrono::seconds(20));
      },
      testing::ExitedWithCode(80), "rank 1: nothing has moved");
}

}  // namespace
}  // namespace conclave::comm
