// SPDX-License-Identifier: Apache-2.0
// Runs the same tests on every rank of an mpirun job. A failure on one rank is everybody's.
#include <gtest/gtest.h>

#include <algorithm>

#include "launched/launched_world.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return conclave::comm::run_world([](conclave::comm::World& world) {
    conclave::test::launched_world(&world);
    const std::vector<int> failed = world.group().all_gather_value(RUN_ALL_TESTS());
    return *std::max_element(failed.begin(), failed.end());
  });
}
