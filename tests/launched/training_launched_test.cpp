// SPDX-License-Identifier: Apache-2.0
// Training over processes has the bits of one process: the body of tests/train/layout_test.cpp; tensor parallelism is
// as close to it as over threads.
#include <algorithm>

#include "launched/launched_world.h"
#include "train/layout_runs.h"
#include "train/saved_run.h"

namespace conclave::test {
namespace {

class TrainingLaunchedTest : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(TrainingLaunchedTest, CanonicalIsBitwiseAndFastIsClose) {
  const comm::Group world = launched_world().group();
  const Alone alone(GetParam());
  for (int64_t ep = 1; ep <= world.size(); ep *= 2) expect_layout_promise(world, {world.size(), ep}, GetParam(), alone);
}

// Two tensor-parallel ranks, experts over as many ranks as there are: close to one rank, and what canonical makes does
// not depend on who holds the experts.
TEST_P(TrainingLaunchedTest, TensorParallelStepIsClose) {
  const comm::Group world = launched_world().group();
  if (world.size() % 2 != 0) GTEST_SKIP() << "needs an even number of ranks";
  LayoutCase wide = GetParam();
  wide.change = [change = wide.change](train::RunConfig& config) {
    config.train.micro_batch_size = 4;
    change(config);
  };
  const LayoutOutcome alone = run_layout(comm::Group(), {}, wide, parallel::Reduction::kFast);
  for (Layout layout :
       {Layout{.ep = world.size(), .zero = 1, .tp = 2}, Layout{.ep = world.size() / 2, .tp = 2, .etp = 2},
        Layout{.ep = 1, .tp = 2, .sequence_parallel = false}}) {
    layout.dp = world.size() / 2;
    expect_close(run_layout(world, layout, wide, parallel::Reduction::kFast), alone);
  }
  const Layout one{.dp = world.size() / 2, .ep = 1, .tp = 2},
      other{.dp = world.size() / 2, .ep = 2, .zero = 1, .tp = 2};
  expect_same(run_layout(world, one, wide, parallel::Reduction::kCanonical),
              run_layout(world, other, wide, parallel::Reduction::kCanonical));
}

// The device path on tensors of the CPU, with experts over the processes and with optimizer state shared by them.
TEST_P(TrainingLaunchedTest, DevicePathIsClose) {
  if (layout_config(GetParam()).moe.capacity.factor) GTEST_SKIP() << "the device path drops nothing";
  const comm::Group world = launched_world().group();
  const auto alone = run_layout(comm::Group(), {}, GetParam(), parallel::Reduction::kFast);
  LayoutCase on_device = GetParam();
  on_device.device = model::DevicePath{};
  for (const int64_t zero : {0, 1})
    for (int64_t ep = 1; ep <= world.size(); ep *= 2)
      expect_close(run_layout(world, {world.size(), ep, zero}, on_device, parallel::Reduction::kFast), alone);
}

// Executors, with transfers polled and with a communication thread; no message counts as eager.
TEST_P(TrainingLaunchedTest, InterleavedIsBitwiseAndChunkedIsClose) {
  const Alone alone(GetParam());
  for (const auto by : {comm::ProgressBy::kThread, comm::ProgressBy::kPoll}) {
    const auto progress = std::make_shared<comm::Progress>();
    progress->advance_by(by);
    const comm::Group world(comm::make_mpi_world({.eager_bytes = 0}, progress));
    expect_executor_promises(world, {.dp = world.size(), .ep = world.size()}, GetParam(), alone);
  }
}

// Sums beside backward and weights beside forward, moved on by polls and by a thread; no message counts as eager.
TEST(TrainingLaunchedOverlapTest, ChangesNoBit) {
  for (const auto by : {comm::ProgressBy::kThread, comm::ProgressBy::kPoll}) {
    const auto progress = std::make_shared<comm::Progress>();
    progress->advance_by(by);
    const comm::Group world(comm::make_mpi_world({.eager_bytes = 0}, progress));
    const LayoutCase wide{.name = "Wide", .change = [&](auto& config) {
                            config.train.micro_batch_size = 4;
                            config.train.global_batch_size = std::max<int64_t>(16, 4 * world.size());
                          }};
    std::vector<Layout> layouts{{.dp = world.size()}, {.dp = world.size(), .ep = world.size()}};
    if (world.size() % 2 == 0) layouts.push_back({.dp = world.size() / 2, .ep = 2, .tp = 2});
    for (Layout layout : layouts)
      for (const auto reduction : {parallel::Reduction::kCanonical, parallel::Reduction::kFast})
        for (const auto executor : {parallel::ExecutorType::kSequential, parallel::ExecutorType::kInterleaved})
          for (layout.zero = 0; layout.zero < 2; ++layout.zero) {
            layout.executor = executor;
            layout.overlap = false;
            const auto waiting = run_layout(world, layout, wide, reduction);
            layout.overlap = true;
            expect_same(run_layout(world, layout, wide, reduction), waiting);
          }
  }
}

// A run that learns from a frozen one, which rank 0 has saved.
TEST(TrainingLaunchedTeacherTest, LayoutsKeepTheirPromises) {
  const comm::Group world = launched_world().group();
  std::optional<SavedRun> teacher;
  if (world.rank() == 0)
    teacher.emplace(LayoutCase{.name = "Teacher", .change = [](auto& config) { config.model.hidden_size = 48; }}, 2);
  const std::string where = world.all_gather_text(teacher ? teacher->where() : "")[0];
  const LayoutCase taught{.name = "Taught", .change = [&](auto& config) {
                            config.train.distill = {.teacher = where, .weight = 0.6, .temperature = 1.5};
                            config.train.micro_batch_size = 4;
                            config.train.global_batch_size = std::max<int64_t>(16, 4 * world.size());
                          }};
  const Alone alone(taught);
  expect_layout_promise(world, {world.size(), world.size()}, taught, alone);
  if (world.size() % 2 == 0)
    expect_close(run_layout(world, {.dp = world.size() / 2, .ep = world.size(), .zero = 1, .tp = 2}, taught,
                            parallel::Reduction::kFast),
                 alone.fast);
  world.barrier();  // rank 0 removes the teacher
}

INSTANTIATE_TEST_SUITE_P(All, TrainingLaunchedTest, ::testing::ValuesIn(layout_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace conclave::test
