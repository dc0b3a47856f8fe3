// SPDX-License-Identifier: Apache-2.0
// The NCCL transport's own logic over a made-up NCCL (fake_nccl.h): every case of the conformance suite, and what only
// a transport with streams and two memories can get wrong. NCCL itself: nccl_device_test.cpp.
#include "comm/nccl_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "comm/fake_nccl.h"
#include "comm/group_conformance.h"
#include "support/ranks.h"

namespace conclave::test {
namespace {

using comm::Group;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::string message_of(const std::exception_ptr& error) { return error ? comm::failure_of(error).message : ""; }

// One rank's library and the group over it whose buffers all lie on the made-up device.
struct Rank {
  Rank(const std::shared_ptr<FakeFabric>& fabric, const Group& host, int looks = 0, bool is_eager = false)
      : library(std::make_shared<FakeNccl>(fabric)) {
    library->looks_per_call = looks;
    library->is_eager = is_eager;
    transport = comm::make_nccl_transport(library, host);
    staged = Group(std::make_shared<StagedTransport>(transport, library));
    plain = Group(transport);
  }
  std::shared_ptr<FakeNccl> library;
  std::shared_ptr<comm::Transport> transport;
  Group staged, plain;
};

// ranks, looks until a call is done, and whether the communication stream runs ahead
using Conditions = std::tuple<GroupCase, int, int, bool>;
class NcclTransportRanksTest : public testing::TestWithParam<Conditions> {};

TEST_P(NcclTransportRanksTest, ConformsOnDeviceMemory) {
  const auto& [one_case, ranks, looks, is_eager] = GetParam();
  const auto fabric = std::make_shared<FakeFabric>();
  run_ranks(ranks, [&, one_case = one_case, looks = looks, is_eager = is_eager](const Group& host) {
    const Rank rank(fabric, host, looks, is_eager);
    EXPECT_EQ(rank.staged.transport_name(), "nccl");
    one_case.run(rank.staged);
    EXPECT_EQ(rank.library->live_events, 0);
  });
}

INSTANTIATE_TEST_SUITE_P(All, NcclTransportRanksTest,
                         testing::Combine(testing::ValuesIn(group_cases()), testing::Values(1, 2, 3, 5),
                                          testing::Values(0, 3), testing::Bool()),
                         [](const auto& info) {
                           return fmt::format("{}On{}After{}Looks{}", std::get<0>(info.param).name,
                                              std::get<1>(info.param), std::get<2>(info.param),
                                              std::get<3>(info.param) ? "Eager" : "Lazy");
                         });

class NcclTransportMemoryRanksTest : public testing::Test {
 protected:
  std::shared_ptr<FakeFabric> fabric_ = std::make_shared<FakeFabric>();
};

TEST_F(NcclTransportMemoryRanksTest, HostMemoryGoesThroughTheHostsGroup) {
  run_ranks(3, [&](const Group& host) {
    const Rank rank(fabric_, host);
    for (const GroupCase& one_case : group_cases()) one_case.run(rank.plain);
    for (const std::string& call : rank.library->calls())
      EXPECT_THAT(call, testing::AnyOf("init", "split", StartsWith("finalize"), StartsWith("destroy")));
  });
}

TEST_F(NcclTransportMemoryRanksTest, WhatArrivesIsThereForTheComputationThatFollowsFinish) {
  run_ranks(2, [&](const Group& host) {
    const Rank rank(fabric_, host);
    FakeNccl& device = *rank.library;
    const auto send = device.allocate(16), recv = device.allocate(16);
    const std::vector<std::byte> ones(16, std::byte{1});
    device.to_device(ones, send);
    const std::vector<int64_t> halves{8, 8};
    comm::Work work = rank.plain.start_all_to_all_v(std::span<const std::byte>(send), std::span<const int64_t>(halves),
                                                    recv, std::span<const int64_t>(halves));
    std::vector<std::byte> seen(16);
    device.to_host(recv, seen);
    EXPECT_EQ(seen, std::vector<std::byte>(16)) << "the computation does not wait for what is not finished";
    work.finish();
    device.to_host(recv, seen);
    EXPECT_EQ(seen, ones);
  });
}

// Which memory the others use cannot be seen by a rank that has nothing; the next exchange must still meet its like.
TEST_F(NcclTransportMemoryRanksTest, ARankWithoutMessagesStaysInStep) {
  run_ranks(3, [&](const Group& host) {
    const Rank rank(fabric_, host);
    for (int round = 0; round < 3; ++round) {
      // Ranks 0 and 1 exchange, rank 2 has empty buffers.
      const int64_t own = host.rank() < 2 ? 8 : 0;
      const std::vector<int64_t> counts{host.rank() == 1 ? own : 0, host.rank() == 0 ? own : 0, 0};
      const std::vector<int32_t> data(own, host.rank());
      std::vector<int32_t> arrived(own, -1);
      rank.staged.all_to_all_v(std::span<const int32_t>(data), std::span<const int64_t>(counts),
                               std::span<int32_t>(arrived), std::span<const int64_t>(counts));
      EXPECT_EQ(arrived, std::vector<int32_t>(own, 1 - host.rank()));
      Traffic traffic = make_traffic(rank.plain, round);
      start(rank.plain, traffic).finish();
      expect_arrived(rank.plain, round, traffic);
    }
  });
}

TEST_F(NcclTransportMemoryRanksTest, BuffersInTwoMemoriesAreABugOfOurs) {
  const auto outcomes = rank_outcomes(1, [&](const Group& host) {
    const Rank rank(fabric_, host);
    std::vector<std::byte> here(8);
    const std::vector<int64_t> counts{8};
    rank.plain.all_to_all_v(std::span<const std::byte>(rank.library->allocate(8)), std::span<const int64_t>(counts),
                            std::span<std::byte>(here), std::span<const int64_t>(counts));
  });
  EXPECT_THAT(message_of(outcomes[0]), HasSubstr("both buffers are the GPU's"));
}

TEST_F(NcclTransportMemoryRanksTest, PiecesOfOneSizeAreOneCall) {
  run_ranks(2, [&](const Group& host) {
    const Rank rank(fabric_, host);
    rank.staged.all_gather_value(host.rank());
    EXPECT_THAT(rank.library->calls(), Contains("all_gather"));
    EXPECT_THAT(rank.library->calls(), Not(Contains("begin")));
  });
}

TEST_F(NcclTransportMemoryRanksTest, EachRankBeginsWithItsNeighbour) {
  run_ranks(3, [&](const Group& host) {
    const Rank rank(fabric_, host);
    const std::vector<int32_t> data(3, 1);
    std::vector<int32_t> arrived(3);
    rank.staged.all_to_all(std::span<const int32_t>(data), std::span<int32_t>(arrived));
    std::vector<std::string> sends;
    for (const std::string& call : rank.library->calls())
      if (call.starts_with("send")) sends.push_back(call);
    const int me = host.rank();
    EXPECT_EQ(sends, (std::vector<std::string>{fmt::format("send 4 to {}", (me + 1) % 3),
                                               fmt::format("send 4 to {}", (me + 2) % 3)}));
  });
}

class NcclTransportFailureRanksTest : public NcclTransportMemoryRanksTest {};

TEST_F(NcclTransportFailureRanksTest, AFailedSendEndsItsBatchAndNamesTheExchange) {
  const auto outcomes = rank_outcomes(2, [&](const Group& host) {
    const Rank rank(fabric_, host);
    if (host.rank() == 1) return;
    rank.library->fails_next_call = true;
    Traffic traffic = make_traffic(rank.staged, 1);
    EXPECT_THROW(start(rank.staged, traffic), CommError);
    const auto calls = rank.library->calls();
    EXPECT_EQ(std::count(calls.begin(), calls.end(), "begin"), std::count(calls.begin(), calls.end(), "end"));
    EXPECT_THROW(rank.staged.all_gather_value(1), CommError);
    rank.staged.poll();
  });
  EXPECT_EQ(message_of(outcomes[0]), "NCCL: all_to_all failed: the fabric is torn") << "the first failure is kept";
}

TEST_F(NcclTransportFailureRanksTest, AFailedBroadcastInsideOfAGatherIsNotLost) {
  const auto outcomes = rank_outcomes(2, [&](const Group& host) {
    const Rank rank(fabric_, host);
    if (host.rank() == 1) return;
    rank.library->fails_next_call = true;
    std::vector<int32_t> all(3);
    const std::vector<int64_t> counts{1, 2};
    rank.staged.all_gather_v(std::span<const int32_t>(all).first(1), std::span<int32_t>(all),
                             std::span<const int64_t>(counts));
  });
  EXPECT_EQ(message_of(outcomes[0]), "NCCL: all_gather failed: the fabric is torn");
}

TEST_F(NcclTransportFailureRanksTest, AbortFreesTheGpuAndTellsTheOthers) {
  const auto outcomes = rank_outcomes(2, [&](const Group& host) {
    const Rank rank(fabric_, host);
    if (host.rank() == 0) {
      rank.plain.abort(78, "no such file");
      EXPECT_THAT(rank.library->calls(), Contains("abort world 1"));
    }
    rank.staged.all_gather_value(1);
  });
  EXPECT_EQ(message_of(outcomes[0]), "the job was ended: no such file");
}

TEST_F(NcclTransportFailureRanksTest, ARankThatUnwindsDoesNotWaitForTheOthers) {
  std::vector<std::shared_ptr<FakeNccl>> libraries(2);
  const auto outcomes = rank_outcomes(2, [&](const Group& host) {
    const Rank rank(fabric_, host);
    libraries[host.rank()] = rank.library;
    const Group part = rank.staged.split(0, 0);
    if (host.rank() == 1) throw DataError("shard 7 is cut short");
  });
  EXPECT_THAT(message_of(outcomes[1]), "shard 7 is cut short");
  EXPECT_THAT(libraries[1]->calls(), Not(Contains(StartsWith("finalize"))));
  EXPECT_THAT(libraries[1]->calls(), Contains("abort world 1"));
  EXPECT_THAT(libraries[1]->calls(), Contains("abort world 1/0:0"));
}

}  // namespace
}  // namespace conclave::test
