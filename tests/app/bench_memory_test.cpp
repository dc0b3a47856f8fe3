// SPDX-License-Identifier: Apache-2.0
// `conclave bench memory`: the bytes that a layer holds, against what they must be.
#include "app/bench_memory.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>

#include "support/allocator.h"

namespace conclave::app {
namespace {

train::RunConfig memory_config() {
  train::RunConfig config;
  config.model.vocab_size = 64;
  config.model.hidden_size = 128;
  config.model.num_layers = 1;
  config.model.num_attention_heads = 4;
  config.model.max_seq_len = 256;
  config.moe.num_experts = int64_t{8};
  config.moe.top_k = 2;
  config.moe.expert_hidden_size = 192;
  config.data.train = {{.name = "made up", .path = "made-up"}};
  config.data.seq_len = 256;
  config.train.micro_batch_size = config.train.global_batch_size = 8;
  config.parallel.reduction = parallel::Reduction::kFast;
  train::resolve(config, 1);
  return config;
}

// As many numbers of the router for each token as a narrow expert has columns.
TEST(BenchMemory, HoldsLittleMoreThanTheLeastWithManyNarrowExperts) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  at::set_num_threads(1);
  train::RunConfig config = memory_config();
  config.model.hidden_size = 256;
  config.moe.num_experts = int64_t{64};
  config.moe.top_k = 8;
  config.moe.expert_hidden_size = 128;
  train::resolve(config, 1);
  const MemoryBench bench = measure_memory(config);
  EXPECT_EQ(bench.tokens, 2048);
  EXPECT_LE(bench.held(bench.levels[0]), 1.10);
}

TEST(BenchMemory, HoldsLittleMoreThanTheLeastAndLessWithRecomputation) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  at::set_num_threads(1);
  const MemoryBench bench = measure_memory(memory_config());
  EXPECT_EQ(bench.least_bytes, 4 * (2048 * 128 + 2 * 2048 * 2 * 192));
  ASSERT_EQ(bench.levels.size(), 3u);
  EXPECT_GE(bench.held(bench.levels[0]), 1.0);
  EXPECT_LE(bench.held(bench.levels[0]), 1.10);
  EXPECT_LT(bench.held(bench.levels[1]), 0.35) << "without pre-activations";
  // Both keep only the layer's input here; the allocator's own rounding (some bytes of 7 MB) differs between the two.
  EXPECT_NEAR(bench.held(bench.levels[2]), bench.held(bench.levels[1]), 0.001);
  EXPECT_THAT(memory_report(bench), ::testing::HasSubstr("memory.recompute"));
}

}  // namespace
}  // namespace conclave::app
