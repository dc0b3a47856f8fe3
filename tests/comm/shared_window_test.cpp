// SPDX-License-Identifier: Apache-2.0
#include "comm/shared_window.h"

#include <gtest/gtest.h>

#include <tuple>

#include "comm/shared_window_cases.h"
#include "core/error.h"
#include "support/ranks.h"

namespace conclave::test {
namespace {

using comm::Group;

class SharedWindowRanksTest : public testing::TestWithParam<std::tuple<GroupCase, int>> {};

TEST_P(SharedWindowRanksTest, WorksOverThreads) {
  const auto& [one_case, ranks] = GetParam();
  run_ranks(ranks, [&](const Group& group) { one_case.run(group); });
}

INSTANTIATE_TEST_SUITE_P(All, SharedWindowRanksTest,
                         testing::Combine(testing::ValuesIn(shared_window_cases()), testing::Values(1, 2, 4)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "On" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(SharedWindowTest, OneRankAloneHasOneToo) {
  for (const GroupCase& one_case : shared_window_cases()) {
    SCOPED_TRACE(one_case.name);
    one_case.run(Group());
  }
}

TEST(SharedWindowTest, TooManyOpenTurnsAreABug) {
  const comm::SharedWindow window{Group()};
  for (int64_t i = 0; i < comm::SharedWindow::kTurns; ++i) window.open(nullptr, 8);
  EXPECT_THROW(window.open(nullptr, 8), BugError);
}

TEST(SharedWindowRanksFailureTest, ARankThatFailsWakesThoseThatWaitForIt) {
  const auto outcomes = rank_outcomes(3, [](const Group& group) {
    const comm::SharedWindow window(group);
    if (group.rank() == 1) throw DataError("shard 7 is cut short");
    auto turn = window.open(nullptr, 8);
    window.meet(turn);
  });
  for (const int r : {0, 2})
    EXPECT_EQ(comm::failure_of(outcomes[r]).message, "rank 1 failed: shard 7 is cut short") << r;
}

TEST(SharedWindowRanksHostsTest, RanksKnowWhoSharesTheirHost) {
  const auto transports = comm::make_local_world(5, {7, 3, 7, 3, 1});
  std::vector<std::thread> threads;
  for (int r = 0; r < 5; ++r)
    threads.emplace_back([&, r] {
      const Group group(transports[r]);
      EXPECT_EQ(group.hosts(), (std::vector{0, 1, 0, 1, 4}));
      const Group part = group.split(r < 2 ? 0 : 1, -r);
      EXPECT_EQ(part.hosts(), r < 2 ? (std::vector{0, 1}) : (std::vector{0, 1, 2}));
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(Group().hosts(), std::vector{0});
}

}  // namespace
}  // namespace conclave::test
