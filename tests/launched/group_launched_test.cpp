// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <sched.h>

#include <cstdlib>
#include <set>

#include "comm/group_conformance.h"
#include "core/error.h"
#include "launched/launched_world.h"

namespace conclave::test {
namespace {

using comm::Group;

int number_of(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? -1 : std::atoi(text);
}

class GroupLaunchedTest : public testing::TestWithParam<GroupCase> {};

TEST_P(GroupLaunchedTest, ConformsOverProcesses) {
  const Group group = launched_world().group("mpi");
  EXPECT_EQ(group.transport_name(), "mpi");
  GetParam().run(group);
}

// Small limits take every path that buffers beyond 2 GiB take.
TEST_P(GroupLaunchedTest, ConformsWhenMessagesAreCut) {
  GetParam().run(Group(comm::make_mpi_world({.collective_bytes = 4099, .piece_bytes = 1001})));
}

// No message counts as eager: every all-to-all is advanced by the thread.
TEST_P(GroupLaunchedTest, ConformsWithACommunicationThread) {
  const auto progress = std::make_shared<comm::Progress>();
  progress->advance_by(comm::ProgressBy::kThread);
  GetParam().run(
      Group(comm::make_mpi_world({.collective_bytes = 4099, .piece_bytes = 1001, .eager_bytes = 0}, progress)));
}

TEST_P(GroupLaunchedTest, ConformsOnGroupsOfOne) {
  GetParam().run(launched_world().group().split(launched_world().rank(), 0));
}

INSTANTIATE_TEST_SUITE_P(All, GroupLaunchedTest, testing::ValuesIn(group_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(WorldLaunchedTest, KnowsItsPlace) {
  const comm::World& world = launched_world();
  int size = 0, rank = -1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  EXPECT_EQ(world.size(), size);
  EXPECT_EQ(world.rank(), rank);
  // The launcher's own count of ranks on this host, whatever the hosts are called.
  const int local_size = number_of("OMPI_COMM_WORLD_LOCAL_SIZE");
  EXPECT_EQ(world.local_size(), local_size);
  EXPECT_EQ(world.local_rank(), number_of("OMPI_COMM_WORLD_LOCAL_RANK"));
  const std::set<std::string> names(world.hosts().begin(), world.hosts().end());
  EXPECT_EQ(std::ssize(names), size / local_size);
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  EXPECT_EQ(world.cores(), std::max(CPU_COUNT(&set) / local_size, 1)) << "unbound ranks share the cores";
}

TEST(WorldLaunchedTest, ThreadsMayCallMpi) {
  int provided = 0;
  MPI_Query_thread(&provided);
  EXPECT_EQ(provided, MPI_THREAD_MULTIPLE);
}

// Several long exchanges under way at a time, finished in order while small collectives go on between them.
TEST(GroupLaunchedProgressTest, LongExchangesAdvanceWhileNobodyWaits) {
  for (const auto by : {comm::ProgressBy::kPoll, comm::ProgressBy::kThread}) {
    const auto progress = std::make_shared<comm::Progress>();
    progress->advance_by(by);
    const Group group(comm::make_mpi_world({}, progress));
    const int64_t each = 300 * 1000;
    const int n = group.size();
    const std::vector<int64_t> counts(n, each);
    std::vector<std::vector<int32_t>> send(3), recv(3);
    std::vector<comm::Work> works;
    for (int i = 0; i < 3; ++i) {
      recv[i].resize(n * each);
      for (int64_t j = 0; j < n * each; ++j) send[i].push_back(static_cast<int32_t>(j * 3 + i + 7 * group.rank()));
      works.push_back(group.start_all_to_all_v(std::span<const int32_t>(send[i]), std::span<const int64_t>(counts),
                                               std::span<int32_t>(recv[i]), std::span<const int64_t>(counts)));
      const auto ranks = group.all_gather_value(group.rank());
      EXPECT_EQ(ranks.back(), n - 1);
      for (int poll = 0; poll < 20; ++poll) group.poll();
    }
    for (int i = 0; i < 3; ++i) {
      works[i].finish();
      for (int r = 0; r < n; ++r)
        for (const int64_t j : {int64_t{0}, each / 2, each - 1})
          EXPECT_EQ(recv[i][r * each + j], static_cast<int32_t>((group.rank() * each + j) * 3 + i + 7 * r));
    }
  }
}

// The thread meets the error, the rank that waits throws it.
TEST(GroupLaunchedErrorTest, AnErrorOnTheCommunicationThreadIsThrownWhereItIsWaitedFor) {
  const auto progress = std::make_shared<comm::Progress>();
  progress->advance_by(comm::ProgressBy::kThread);
  const Group group(comm::make_mpi_world({.eager_bytes = 0}, progress));
  const int n = group.size();
  std::vector<int32_t> send(4), recv(2);
  std::vector<int64_t> send_counts(n, 0), recv_counts(n, 0);
  if (group.rank() == 0) send_counts[1] = 2;
  if (group.rank() == 1) recv_counts[0] = 1;
  comm::Work work = group.start_all_to_all_v(
      std::span<const int32_t>(send).first(group.rank() == 0 ? 2 : 0), std::span<const int64_t>(send_counts),
      std::span<int32_t>(recv).first(group.rank() == 1 ? 1 : 0), std::span<const int64_t>(recv_counts));
  if (group.rank() == 1) {
    EXPECT_THROW(work.finish(), CommError);
  } else {
    work.finish();
  }
}

TEST(GroupLaunchedErrorTest, AnErrorOfMpiBecomesACommError) {
  const Group group = launched_world().group().split(0, 0);
  std::vector<int32_t> send(4), recv(2);
  const int n = group.size();
  if (n < 2) GTEST_SKIP() << "needs two ranks";
  // Rank 0 sends two elements to rank 1, which expects one: MPI calls the message truncated.
  std::vector<int64_t> send_counts(n, 0), recv_counts(n, 0);
  if (group.rank() == 0) send_counts[1] = 2;
  if (group.rank() == 1) recv_counts[0] = 1;
  comm::Work work = group.start_all_to_all_v(
      std::span<const int32_t>(send).first(group.rank() == 0 ? 2 : 0), std::span<const int64_t>(send_counts),
      std::span<int32_t>(recv).first(group.rank() == 1 ? 1 : 0), std::span<const int64_t>(recv_counts));
  if (group.rank() == 1) {
    try {
      work.finish();
      ADD_FAILURE() << "no exception";
    } catch (const CommError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("MPI_Wait failed on rank 1 of a group of"));
      EXPECT_THAT(error.what(), testing::HasSubstr("truncated"));
    }
  } else {
    work.finish();
  }
}

}  // namespace
}  // namespace conclave::test
