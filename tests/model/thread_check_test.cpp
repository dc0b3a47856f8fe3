// SPDX-License-Identifier: Apache-2.0
// The start-up check of `reduction: canonical` for the sizes of a model. That what it accepts keeps its bits in
// training is tested in train/layout_test.
#include "model/thread_check.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>

namespace conclave::model {
namespace {

ModelShape shape_of(int64_t hidden) {
  ModelShape shape{.vocab = 128, .hidden = hidden, .heads = 2, .kv_heads = 2, .head_dim = 32, .layers = {}};
  shape.layers = {{.moe = true, .num_experts = 8, .top_k = 2, .expert_width = 32}};
  return shape;
}

TEST(ThreadCheck, AcceptsEvenSizesAndRestoresTheThreads) {
  at::set_num_threads(2);
  for (const int threads : {1, 2, 3, 4}) EXPECT_EQ(thread_obstacle(shape_of(64), 256, threads), "") << threads;
  EXPECT_EQ(at::get_num_threads(), 2);
  at::set_num_threads(1);
}

TEST(ThreadCheck, NamesTheProductWhoseBitsDependOnTheThreads) {
  EXPECT_EQ(thread_obstacle(shape_of(36), 256, 1), "") << "one thread always passes";
  const std::string obstacle = thread_obstacle(shape_of(36), 256, 3);
  if (obstacle.empty()) GTEST_SKIP() << "this BLAS keeps 36 columns";
  EXPECT_THAT(obstacle, ::testing::MatchesRegex("the .+ of query, key and value \\(256 rows, 36 inputs, 192 outputs\\) "
                                                "has other bits on 3 threads than on one"));
}

}  // namespace
}  // namespace conclave::model
