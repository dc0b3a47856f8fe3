// SPDX-License-Identifier: Apache-2.0
// Training over processes has the bits of one process: the body of tests/train/layout_test.cpp.
#include "launched/launched_world.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

class TrainingLaunchedTest : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(TrainingLaunchedTest, CanonicalIsBitwiseAndFastIsClose) {
  const comm::Group world = launched_world().group();
  const Alone alone(GetParam());
  for (int64_t ep = 1; ep <= world.size(); ep *= 2) expect_layout_promise(world, {world.size(), ep}, GetParam(), alone);
}

INSTANTIATE_TEST_SUITE_P(All, TrainingLaunchedTest, ::testing::ValuesIn(layout_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::test
