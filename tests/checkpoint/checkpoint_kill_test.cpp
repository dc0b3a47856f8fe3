// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

class CheckpointKillTest : public testing::TestWithParam<std::string> {};

// kill -9 at every named point of the third save, in a process of its own; then the same program starts again.
TEST_P(CheckpointKillTest, LeavesTheOldCheckpointOrTheWholeNewOne) {
  const auto& name = GetParam();
  const Scratch scratch;
  const pid_t child = ::fork();
  if (child == 0) {
    SingleRun run(scratch.run(), fmt::format("{}:{}=kill", name, name == "mid-retention" ? 1 : 3));
    for (const int64_t step : {1, 2, 3}) run.save(step);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the point was never reached";

  const auto folder = scratch.run() / "checkpoints";
  EXPECT_EQ(std::filesystem::exists(scratch.step(3)), committed_at(name));
  const auto left = entries(folder, ".");
  SingleRun again(scratch.run());
  EXPECT_TRUE(again.resumes_at(committed_at(name) ? 3 : 2));
  EXPECT_TRUE(entries(folder, ".").empty()) << "not swept: " << testing::PrintToString(left);
  again.save(3);
  again.save(4);
  EXPECT_TRUE(again.resumes_at(4));
  EXPECT_EQ(entries(folder, "step-"), (std::vector<std::string>{step_name(3), step_name(4)}));
}

INSTANTIATE_TEST_SUITE_P(AtEveryPoint, CheckpointKillTest, testing::ValuesIn(save_failpoints()), [](const auto& info) {
  auto name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace conclave::checkpoint
