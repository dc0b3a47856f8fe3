// SPDX-License-Identifier: Apache-2.0
// What a training step costs once it runs: no memory that stays, and the threads it was given.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include "support/allocator.h"
#include "support/thread_count.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

// A model on one rank with its batches made beforehand.
class Training {
 public:
  Training(const LayoutCase& layout_case, parallel::Reduction reduction) : config_(config_of(layout_case, reduction)) {
    for (int64_t m = 0; m < config_.train.global_batch_size / config_.train.micro_batch_size; ++m) {
      batches_.push_back(layout_batch(config_, true, 0, m));
    }
  }
  void steps(int64_t count) {
    for (int64_t i = 0; i < count; ++i) EXPECT_FALSE(step_.run(done_++, batches_).skipped);
  }

 private:
  static train::RunConfig config_of(const LayoutCase& layout_case, parallel::Reduction reduction) {
    train::RunConfig config = layout_config(layout_case);
    config.parallel.reduction = reduction;
    train::resolve(config, 1);
    return config;
  }

  train::RunConfig config_;
  parallel::Mesh mesh_;
  model::Transformer model_{{.model = config_.model, .moe = config_.moe, .seed = 3}, mesh_};
  Failpoints none_;
  train::TrainStep step_{config_, mesh_, model_, none_};
  std::vector<Batch> batches_;
  int64_t done_ = 0;
};

class SteadyState : public ::testing::TestWithParam<parallel::Reduction> {};

TEST_P(SteadyState, StepsLeaveNoMemoryBehind) {
  if (!allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count; it finds leaks itself";
  at::set_num_threads(1);
  // Routing changes from step to step, and with it what is allocated within one.
  Training training({.name = "Steady", .change = [](auto& config) { config.train.steps = 1000; }}, GetParam());
  training.steps(5);
  // One lost vector of 8 counts for each step is 9,600 bytes in every window. Freed small pieces that the allocator
  // keeps at hand count as in use, and how many differs from machine to machine; but such a growth ends, and a leak
  // does not.
  int64_t growth = std::numeric_limits<int64_t>::max();
  for (int window = 0; window < 4 && growth > 4 * 1024; ++window) {
    const int64_t before = bytes_in_use();
    training.steps(100);
    growth = std::min(growth, bytes_in_use() - before);
  }
  EXPECT_LE(growth, 4 * 1024);
  RecordProperty("growth_bytes", static_cast<int>(growth));
}

INSTANTIATE_TEST_SUITE_P(Reductions, SteadyState,
                         ::testing::Values(parallel::Reduction::kCanonical, parallel::Reduction::kFast),
                         [](const auto& info) {
                           return info.param == parallel::Reduction::kFast ? "Fast" : "Canonical";
                         });

int64_t threads_of_process() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
}

TEST(SteadyStateThreads, AStepUsesAsManyThreadsAsAskedForAndNoMore) {
  Training training({.name = "Large",
                     .change =
                         [](auto& config) {
                           config.model.vocab_size = 512, config.model.hidden_size = 128,
                           config.moe.expert_hidden_size = 128;
                           config.model.max_seq_len = config.data.seq_len = 192;
                           config.train.global_batch_size = 4, config.train.steps = 10;
                         }},
                    parallel::Reduction::kCanonical);
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const int64_t before = threads_of_process();
    EXPECT_EQ(threads_that_rounded(threads, [&] { training.steps(1); }), threads);
    EXPECT_LE(threads_of_process() - before, threads - 1);
  }
  at::set_num_threads(1);
}

}  // namespace
}  // namespace conclave::test
