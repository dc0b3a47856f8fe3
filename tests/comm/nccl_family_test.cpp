// SPDX-License-Identifier: Apache-2.0
#include "comm/nccl_family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "comm/fake_nccl.h"
#include "core/error.h"

namespace conclave::test {
namespace {

using comm::NcclFamily;
using comm::NcclState;
using testing::ElementsAre;
using testing::HasSubstr;
using Strings = std::vector<std::string>;

class NcclFamilyTest : public testing::Test {
 protected:
  // Communicators of one rank; nobody looks after them unless a test wants it.
  std::unique_ptr<NcclFamily> family(const comm::NcclLimits& limits = {.health_seconds = 1000}) {
    return std::make_unique<NcclFamily>(library_, limits);
  }
  comm::NcclComm join(NcclFamily& family) { return family.join(1, 0, library_->make_id()); }
  static std::string failure_of(const std::function<void()>& body) {
    try {
      body();
    } catch (const CommError& error) {
      return error.what();
    }
    return "";
  }
  // What the watching thread has found within a while.
  static std::string failure_in_time(const NcclFamily& family) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    std::string failure;
    while (failure.empty() && std::chrono::steady_clock::now() < end) {
      failure = failure_of([&] { family.throw_if_failed(); });
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return failure;
  }

  std::shared_ptr<FakeNccl> library_ = std::make_shared<FakeNccl>(std::make_shared<FakeFabric>());
};

TEST_F(NcclFamilyTest, ACallIsOverWhenItsCommunicatorSaysSo) {
  library_->looks_per_call = 5;
  const auto all = family();
  const auto comm = join(*all);
  EXPECT_EQ(library_->communicator(0).looks, 0) << "joined only after every look";
  bool called = false;
  all->issue(comm, "broadcast", [&] {
    called = true;
    library_->communicator(0).looks = 4;
    return NcclState::kInProgress;
  });
  EXPECT_TRUE(called);
  EXPECT_EQ(library_->communicator(0).looks, 0);
  all->release(comm, true);
}

TEST_F(NcclFamilyTest, RanksThatDoNotMeetInTimeAreAborted) {
  library_->meetings_hang = true;
  const auto all = family({.init_seconds = 0.05});
  const std::string failure = failure_of([&] { all->join(4, 0, library_->make_id()); });
  EXPECT_THAT(failure, HasSubstr("rank 0 joining a group of 4: not all ranks have met within 0.05 s"));
  EXPECT_THAT(failure, HasSubstr("NCCL_DEBUG=INFO"));
  EXPECT_THAT(library_->calls(), ElementsAre("init", "abort world 1"));
}

TEST_F(NcclFamilyTest, ASplitThatDoesNotEndIsAborted) {
  const auto all = family({.init_seconds = 0.05});
  const auto world = join(*all);
  library_->communicator(0).hangs = true;
  EXPECT_THAT(failure_of([&] { all->split(world, 0, 0); }), HasSubstr("a split: not all ranks have met"));
  EXPECT_EQ(library_->calls().back(), "abort world 1");
}

TEST_F(NcclFamilyTest, AnErrorThatArrivesWhileNobodyCallsAbortsAllTheNewestFirst) {
  const auto all = family({.health_seconds = 0.01});
  const auto world = join(*all);
  const auto part = all->split(world, 3, 0);
  all->split(part, 1, 0);
  library_->communicator(0).failed = true;
  EXPECT_EQ(failure_in_time(*all), "NCCL met an error while nobody called it: the fabric is torn");
  const Strings calls = library_->calls();
  EXPECT_EQ(Strings(calls.begin() + 3, calls.end()),
            (Strings{"abort world 1/0:3/0:1", "abort world 1/0:3", "abort world 1"}));
  EXPECT_THROW(all->issue(world, "send", [] { return NcclState::kDone; }), CommError);
  EXPECT_THROW(all->split(world, 0, 0), CommError);
}

TEST_F(NcclFamilyTest, AnErrorEndsTheWaitForACall) {
  const auto all = family({.health_seconds = 1000});
  const auto comm = join(*all);
  const std::string failure = failure_of([&] {
    all->issue(comm, "all_to_all", [&] {
      library_->communicator(0).failed = true;
      return NcclState::kInProgress;
    });
  });
  EXPECT_EQ(failure, "NCCL: all_to_all failed: the fabric is torn");
}

TEST_F(NcclFamilyTest, AHangingCallIsEndedByAFailureFromOutside) {
  const auto all = family();
  const auto comm = join(*all);
  library_->communicator(0).hangs = true;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    all->fail("the job was ended: rank 2 has no data");
  });
  EXPECT_EQ(failure_of([&] { all->issue(comm, "all_to_all", [] { return NcclState::kInProgress; }); }),
            "the job was ended: rank 2 has no data");
  other.join();
}

TEST_F(NcclFamilyTest, TheFirstFailureIsTheOneThatIsTold) {
  const auto all = family();
  join(*all);
  all->fail("first");
  all->fail("second");
  EXPECT_EQ(failure_of([&] { all->throw_if_failed(); }), "first");
  EXPECT_THAT(library_->calls(), ElementsAre("init", "abort world 1")) << "aborted once";
}

TEST_F(NcclFamilyTest, ACommunicatorEndsInOrderOrNotAtAll) {
  library_->looks_per_call = 2;
  const auto all = family({.finalize_seconds = 0.05});
  const auto first = join(*all), second = join(*all), third = join(*all);
  all->release(first, true);
  all->release(second, false);
  library_->communicator(2).hangs = true;
  all->release(third, true);
  const Strings calls = library_->calls();
  EXPECT_EQ(Strings(calls.begin() + 3, calls.end()),
            (Strings{"finalize world 1", "destroy world 1", "abort world 2", "finalize world 3", "abort world 3"}));
  EXPECT_EQ(failure_of([&] { all->throw_if_failed(); }), "") << "that a group ends is no failure";
}

TEST_F(NcclFamilyTest, WhatWasAbortedIsNotTouchedAgain) {
  const auto all = family();
  const auto comm = join(*all);
  all->fail("gone");
  all->release(comm, true);
  all->release(comm, false);
  EXPECT_THAT(library_->calls(), ElementsAre("init", "abort world 1"));
}

}  // namespace
}  // namespace conclave::test
