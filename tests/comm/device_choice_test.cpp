// SPDX-License-Identifier: Apache-2.0
#include "comm/device_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "support/ranks.h"

namespace conclave::test {
namespace {

using comm::choose_device;
using comm::DeviceChoice;
using comm::Group;
using device::Availability;
using testing::AllOf;
using testing::HasSubstr;

// What each rank chooses, four ranks on two hosts.
std::vector<DeviceChoice> choices(const std::string& wanted, const std::vector<Availability>& found) {
  std::vector<DeviceChoice> by_rank(4);
  rethrow_cause(rank_outcomes(
      4, [&](const Group& world) { by_rank[world.rank()] = choose_device(wanted, world, found[world.rank()]); }, 120,
      {0, 1, 0, 1}));
  return by_rank;
}

const Availability kTwo{2, ""};
const Availability kNone{0, "no driver"};

TEST(DeviceChoiceRanksTest, EachRankOfAHostTakesAGpuOfItsOwn) {
  for (const char* wanted : {"auto", "cuda"}) {
    const auto by_rank = choices(wanted, {kTwo, kTwo, kTwo, kTwo});
    for (int r = 0; r < 4; ++r) {
      EXPECT_TRUE(by_rank[r].on_gpu);
      EXPECT_EQ(by_rank[r].index, r / 2) << "ranks 0 and 2 are on one host, 1 and 3 on the other";
    }
  }
}

TEST(DeviceChoiceRanksTest, AutoTakesTheCpuEverywhereWhenOneRankHasNoGpu) {
  for (const DeviceChoice& choice : choices("auto", {kTwo, kTwo, kTwo, kNone})) {
    EXPECT_FALSE(choice.on_gpu);
    EXPECT_EQ(choice.reason, "rank 3: no driver");
  }
}

TEST(DeviceChoiceRanksTest, CudaIsRefusedOnEveryRankAndNamesTheFirstThatLacksOne) {
  const auto outcomes = rank_outcomes(4, [&](const Group& world) {
    choose_device("cuda", world, world.rank() < 2 ? Availability{4, ""} : kNone);
  });
  for (const auto& outcome : outcomes) {
    ASSERT_TRUE(outcome);
    const comm::Failure failure = comm::failure_of(outcome);
    EXPECT_EQ(failure.code, 78);
    EXPECT_EQ(failure.message, "train.device: cuda: rank 2: no driver; or use train.device: cpu");
  }
}

TEST(DeviceChoiceRanksTest, MoreRanksThanGpusOnAHostAreRefused) {
  EXPECT_THAT(choices("auto", {kTwo, {1, ""}, kTwo, {1, ""}})[0].reason,
              AllOf(HasSubstr("rank 1: 2 ranks share a host with 1 GPU,"), HasSubstr("start fewer ranks there")));
}

TEST(DeviceChoiceTest, CpuAsksNobody) {
  EXPECT_FALSE(choose_device("cpu", Group(), kTwo).on_gpu);
  EXPECT_EQ(choose_device("cpu", Group(), kNone).reason, "");
}

TEST(DeviceChoiceTest, OneRankTakesTheFirstGpuAndItsMessagesNameNoRank) {
  EXPECT_TRUE(choose_device("auto", Group(), kTwo).on_gpu);
  EXPECT_EQ(choose_device("auto", Group(), kNone).reason, "no driver");
  EXPECT_THROW(choose_device("cuda", Group(), kNone), ConfigError);
}

// Holds in every build on a machine without a GPU, and in a CPU build on any.
TEST(DeviceChoiceTest, WithoutAGpuTheReasonSaysWhatToDo) {
  const Availability found = device::available();
  if (found.count > 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THAT(found.reason, testing::AnyOf(HasSubstr("built without CUDA; build it with the cuda preset"),
                                           HasSubstr("nvidia-smi"), HasSubstr("no GPU that CUDA can see")));
}

}  // namespace
}  // namespace conclave::test
