// SPDX-License-Identifier: Apache-2.0
// The conformance suite over NCCL with a GPU for each rank; skipped, with the reason, where there are fewer.
#include <gtest/gtest.h>

#include "comm/cuda_buffers.h"
#include "comm/device_choice.h"
#include "comm/group_conformance.h"
#include "comm/nccl_group.h"
#include "launched/launched_world.h"

namespace conclave::test {
namespace {

class GroupNcclLaunchedTest : public testing::TestWithParam<GroupCase> {};

TEST_P(GroupNcclLaunchedTest, ConformsOverGpus) {
  const comm::Group host = launched_world().group();
  const auto choice = comm::choose_device("auto", host, device::available());
  if (!choice.on_gpu) GTEST_SKIP() << choice.reason;
  const comm::Group group(std::make_shared<StagedTransport>(comm::make_nccl_world(host), make_cuda_buffers()));
  EXPECT_EQ(group.transport_name(), "nccl");
  GetParam().run(group);
}

INSTANTIATE_TEST_SUITE_P(All, GroupNcclLaunchedTest, testing::ValuesIn(group_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace conclave::test
