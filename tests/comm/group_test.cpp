// SPDX-License-Identifier: Apache-2.0
#include "comm/group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <tuple>

#include "comm/group_conformance.h"
#include "comm/nccl_group.h"
#include "core/device.h"
#include "core/error.h"
#include "support/ranks.h"

namespace conclave::test {
namespace {

using comm::Group;
using testing::AllOf;
using testing::HasSubstr;

class GroupRanksTest : public testing::TestWithParam<std::tuple<GroupCase, int>> {};

TEST_P(GroupRanksTest, ConformsOverThreads) {
  const auto& [one_case, ranks] = GetParam();
  run_ranks(ranks, [&](const Group& group) {
    EXPECT_EQ(group.size(), ranks);
    EXPECT_EQ(group.transport_name(), "threads");
    one_case.run(group);
  });
}

INSTANTIATE_TEST_SUITE_P(All, GroupRanksTest,
                         testing::Combine(testing::ValuesIn(group_cases()), testing::Values(1, 2, 3, 4, 7)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "On" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST(GroupTest, OneRankIsTheIdentity) {
  for (const GroupCase& one_case : group_cases()) {
    SCOPED_TRACE(one_case.name);
    one_case.run(Group());
  }
  EXPECT_EQ(Group().transport_name(), "self");
}

TEST(GroupTest, BuffersThatDoNotFitTheirSizesAreRefused) {
  const Group group;
  std::vector<float> two(2), three(3);
  const std::vector<int64_t> count{2}, negative{-2}, pair{1, 1};
  const std::span<const float> send(two);
  EXPECT_THROW(group.all_gather(send, std::span<float>(three)), BugError);
  EXPECT_THROW(group.all_to_all_v(send, std::span<const int64_t>(count), std::span<float>(three),
                                  std::span<const int64_t>(count)),
               BugError);
  EXPECT_THROW(group.all_to_all_v(send, std::span<const int64_t>(negative), std::span<float>(two),
                                  std::span<const int64_t>(count)),
               BugError);
  EXPECT_THROW(
      group.all_to_all_v(send, std::span<const int64_t>(pair), std::span<float>(two), std::span<const int64_t>(count)),
      BugError);
  EXPECT_THROW(group.broadcast(std::span<float>(two), 1), BugError);
  EXPECT_THROW(group.split(-1, 0), BugError);
}

// In a CPU build as in a CUDA build on a machine without a GPU.
TEST(GroupTest, NcclSaysWhatItLacks) {
  const device::Availability gpus = device::available();
  if (gpus.count > 0) GTEST_SKIP() << "this machine has a GPU";
  try {
    comm::make_nccl_world(Group());
    FAIL() << "no exception";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::AnyOf(HasSubstr("built without NCCL; configure with the cuda preset"),
                                             HasSubstr(gpus.reason)));
    EXPECT_THAT(error.what(), HasSubstr("use comm.backend: mpi"));
  }
}

std::string message_of(const std::exception_ptr& error) { return error ? comm::failure_of(error).message : ""; }

class GroupFailureRanksTest : public testing::Test {
 protected:
  // Rank 2 of 4 throws DataError; the others do what they want. All must end soon, naming rank 2.
  void expect_all_told(const std::function<void(const Group&)>& others) {
    const auto start = std::chrono::steady_clock::now();
    const auto outcomes = rank_outcomes(4, [&](const Group& group) {
      const Group part = group.split(group.rank() % 2, 0);
      if (group.rank() == 2) throw DataError("shard 7 is cut short");
      others(group.rank() == 0 ? part : group);
    });
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    for (int r = 0; r < 4; ++r) {
      if (r == 2) {
        EXPECT_EQ(message_of(outcomes[r]), "shard 7 is cut short");
      } else {
        EXPECT_EQ(message_of(outcomes[r]), "rank 2 failed: shard 7 is cut short") << r;
        EXPECT_THROW(std::rethrow_exception(outcomes[r]), CommError);
      }
    }
  }
};

TEST_F(GroupFailureRanksTest, WakesThoseWhoWaitAlsoInGroupsWithoutTheFailedRank) {
  expect_all_told([](const Group& group) { group.barrier(); });
}

TEST_F(GroupFailureRanksTest, WakesThoseWhoFinishAWork) {
  expect_all_told([](const Group& group) {
    Traffic traffic = make_traffic(group, 0);
    start(group, traffic).finish();
  });
}

TEST_F(GroupFailureRanksTest, RunRanksRethrowsTheCauseAndNotItsConsequences) {
  const auto body = [](const Group& group) {
    if (group.rank() == 1) throw DataError("here");
    group.barrier();
  };
  EXPECT_THROW(run_ranks(3, body), DataError);
}

TEST_F(GroupFailureRanksTest, ARankThatUnwindsWaitsUntilNobodyReadsItsBuffers) {
  for (int trial = 0; trial < 20; ++trial) {
    const auto outcomes = rank_outcomes(3, [&](const Group& group) {
      auto traffic = std::make_unique<Traffic>(make_traffic(group, 0));
      comm::Work work = start(group, *traffic);
      if (group.rank() == 0) throw NumericError("nan");
      work.finish();
      group.barrier();
    });
    for (const auto& outcome : outcomes) EXPECT_TRUE(outcome);
  }
}

TEST_F(GroupFailureRanksTest, DifferentCallsAreNamed) {
  const auto outcomes = rank_outcomes(2, [](const Group& group) {
    std::vector<float> data(group.rank() == 0 ? 2 : 3);
    group.all_reduce(std::span<float>(data));
  });
  for (const auto& outcome : outcomes)
    EXPECT_THAT(message_of(outcome), AllOf(HasSubstr("all_reduce(8 bytes"), HasSubstr("all_reduce(12 bytes")));
}

TEST_F(GroupFailureRanksTest, PiecesOfOtherSizesThanExpectedAreNamed) {
  const auto outcomes = rank_outcomes(2, [](const Group& group) {
    const std::vector<int64_t> send_counts{1, 1};
    const std::vector<int64_t> recv_counts =
        group.rank() == 0 ? std::vector<int64_t>{1, 2} : std::vector<int64_t>{1, 1};
    std::vector<int32_t> send(2), recv(sum_of(recv_counts));
    group.all_to_all_v(std::span<const int32_t>(send), std::span<const int64_t>(send_counts), std::span<int32_t>(recv),
                       std::span<const int64_t>(recv_counts));
  });
  EXPECT_THAT(message_of(outcomes[0]), HasSubstr("rank 1 sends 4 bytes to rank 0, which expects 8"));
}

TEST_F(GroupFailureRanksTest, AHangIsReportedAfterTheLimit) {
  const auto body = [](const Group& group) {
    if (group.rank() == 0) group.barrier();
  };
  EXPECT_THROW(run_ranks(2, body, 0.2), CommError);
}

TEST(GroupRanksOrderTest, ThreadsAddInRankOrder) {
  run_ranks(3, [](const Group& group) {
    const std::vector<float> own{group.rank() == 0 ? 1e8f : group.rank() == 1 ? 3.0f : -1e8f};
    std::vector<float> data = own;
    group.all_reduce(std::span<float>(data));
    EXPECT_EQ(data[0], (1e8f + 3.0f) + -1e8f);
  });
}

}  // namespace
}  // namespace conclave::test
