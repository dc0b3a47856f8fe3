// SPDX-License-Identifier: Apache-2.0
// The world of a process that no launcher started; launched_tests has the others.
#include "comm/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include "core/error.h"

namespace conclave::comm {
namespace {

using testing::HasSubstr;

TEST(WorldTest, AProcessAloneIsAWorldOfOneWithoutMpi) {
  World world;
  EXPECT_EQ(world.size(), 1);
  EXPECT_EQ(world.rank(), 0);
  EXPECT_EQ(world.local_rank(), 0);
  EXPECT_EQ(world.local_size(), 1);
  EXPECT_EQ(world.hosts().size(), 1u);
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  EXPECT_EQ(world.cores(), CPU_COUNT(&set));
  for (const char* backend : {"auto", "mpi"}) EXPECT_EQ(world.group(backend).transport_name(), "self");
}

TEST(WorldTest, UnknownBackendsAreAnsweredWithTheKnownOnes) {
  World world;
  EXPECT_THROW(world.group("nccl"), ConfigError);
  try {
    world.group("smoke");
    FAIL() << "no exception";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("comm.backend: smoke: there is no such backend; known are auto, mpi, nccl"));
  }
}

TEST(WorldTest, AFailureBecomesItsExitCodeAndOneBlock) {
  World world;
  EXPECT_EQ(world.run([] { return 75; }), 75);
  testing::internal::CaptureStderr();
  EXPECT_EQ(world.run([]() -> int { throw DataError("shard.bin is 12 bytes short"); }), 65);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "shard.bin is 12 bytes short\n");
}

}  // namespace
}  // namespace conclave::comm
