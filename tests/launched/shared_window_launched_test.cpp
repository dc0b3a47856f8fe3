// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "comm/shared_window_cases.h"
#include "launched/launched_world.h"

namespace conclave::test {
namespace {

class SharedWindowLaunchedTest : public testing::TestWithParam<GroupCase> {
 protected:
  void SetUp() override {
    const auto hosts = launched_world().group().hosts();
    if (hosts != std::vector<int>(hosts.size(), 0)) GTEST_SKIP() << "needs all ranks on one host";
  }
};

TEST_P(SharedWindowLaunchedTest, WorksOverProcesses) { GetParam().run(launched_world().group()); }

TEST_P(SharedWindowLaunchedTest, WorksOnGroupsOfOne) {
  GetParam().run(launched_world().group().split(launched_world().rank(), 0));
}

INSTANTIATE_TEST_SUITE_P(All, SharedWindowLaunchedTest, testing::ValuesIn(shared_window_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace conclave::test
