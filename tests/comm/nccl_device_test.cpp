// SPDX-License-Identifier: Apache-2.0
// NCCL itself, where there is a GPU: one rank, which is what one GPU takes; several ranks are
// group_nccl_launched_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/cuda_buffers.h"
#include "comm/group_conformance.h"
#include "comm/nccl_group.h"
#include "comm/nccl_transport.h"
#include "core/device.h"
#include "core/error.h"

namespace conclave::test {
namespace {

using comm::Group;

class NcclDeviceTest : public testing::TestWithParam<GroupCase> {
 protected:
  void SetUp() override {
    const device::Availability found = device::available();
    if (found.count == 0) GTEST_SKIP() << found.reason;
  }
};

TEST_P(NcclDeviceTest, ConformsOnOneGpu) {
  const Group group(std::make_shared<StagedTransport>(comm::make_nccl_world(Group()), make_cuda_buffers()));
  EXPECT_EQ(group.transport_name(), "nccl");
  GetParam().run(group);
}

TEST_P(NcclDeviceTest, ConformsInSeveralCommunicatorsAtOnce) {
  const Group world(std::make_shared<StagedTransport>(comm::make_nccl_world(Group()), make_cuda_buffers()));
  std::vector<Group> parts;
  for (int i = 0; i < 3; ++i) parts.push_back((parts.empty() ? world : parts.back()).split(i, 0));
  for (const Group& part : parts) GetParam().run(part);
}

INSTANTIATE_TEST_SUITE_P(All, NcclDeviceTest, testing::ValuesIn(group_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

class NcclDeviceErrorTest : public NcclDeviceTest {};

TEST_P(NcclDeviceErrorTest, ARankThatNobodyMeetsGivesUpInTime) {
  device::use(0);
  comm::NcclFamily family(comm::make_nccl_library(), {.init_seconds = 2});
  EXPECT_THROW(family.join(2, 0, family.library().make_id()), CommError);
}

INSTANTIATE_TEST_SUITE_P(All, NcclDeviceErrorTest, testing::Values(group_cases()[0]));

}  // namespace
}  // namespace conclave::test
