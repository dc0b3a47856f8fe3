// SPDX-License-Identifier: Apache-2.0
// `conclave bench layer` on the CPU: that it runs the layer of the model and counts it right. Times are not judged.
#include "app/bench_layer.h"

#include <gmock/gmock.h>

#include "app/measured_layer.h"
#include "support/allocator.h"

namespace conclave::app {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

train::RunConfig config_of(const std::string& precision) {
  train::RunConfig config;
  config.model.vocab_size = 64;
  config.model.hidden_size = 128;
  config.model.num_layers = 3;
  config.model.num_attention_heads = 4;
  config.model.max_seq_len = 256;
  config.moe.layers = std::vector<int64_t>{0, 1, 1};
  config.moe.num_experts = std::vector<int64_t>{8, 16};
  config.moe.top_k = 2;
  config.moe.expert_hidden_size = 192;
  config.data.train = {{.name = "made up", .path = "made-up"}};
  config.data.seq_len = 256;
  config.train.device = "cpu";
  config.train.precision = precision;
  config.train.micro_batch_size = 8;
  config.train.global_batch_size = 8;
  config.parallel.reduction = parallel::Reduction::kFast;
  train::resolve(config, 1);
  return config;
}

constexpr LayerBenchOptions kShort{.repetitions = 2, .seconds = 0};

TEST(BenchLayer, RefusesExpertsOfDifferentWidths) {
  auto config = config_of("fp32");
  config.moe.num_experts = int64_t{4};
  config.moe.expert_hidden_size = std::vector<int64_t>{64, 128, 192, 256};
  EXPECT_THROW(measure_layer(config, kShort), ConfigError);
}

TEST(BenchLayer, CountsTheFirstMoeLayer) {
  const LayerBench bench = measure_layer(config_of("fp32"), kShort);
  EXPECT_EQ(bench.experts, 8);
  EXPECT_EQ(bench.tokens, 2048);
  const double experts = 2048.0 * 2 * 6 * 128 * 192, router = 2048.0 * 2 * 128 * 8;
  EXPECT_DOUBLE_EQ(bench.forward.amount, experts + router);
  EXPECT_DOUBLE_EQ(bench.training.amount, 3 * (experts + router));
  EXPECT_DOUBLE_EQ(bench.dense.amount, 3 * experts) << "equal FLOPs, without a router";
  for (const TimedWork* work : {&bench.forward, &bench.training, &bench.dense, &bench.ceiling}) {
    ASSERT_EQ(work->seconds.size(), 2u) << work->name;
    EXPECT_GT(work->best(), 0.0) << work->name;
  }
  EXPECT_GE(bench.busiest, 1.0);
  EXPECT_LE(bench.busiest, 8.0);
  EXPECT_FALSE(bench.moves) << "the host path exchanges otherwise: bench dispatch";
  const std::string report = layer_report(bench);
  EXPECT_THAT(report, HasSubstr("8 experts of 192, top-2, width 128, 2048 tokens; fp32 on cpu"));
  EXPECT_THAT(report, Not(HasSubstr("F4")));
}

TEST(BenchLayer, CountsTheBytesThatAreHeld) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  for (const auto& [precision, bytes] : {std::pair("fp32", 4), std::pair("bf16", 2)}) {
    SCOPED_TRACE(precision);
    const LayerBench bench = measure_layer(config_of(precision), kShort);
    EXPECT_EQ(bench.least_bytes, bytes * (2048 * 128 + 2 * 2048 * 2 * 192));
    EXPECT_GE(bench.held(), 1.0) << "less than the least: something is not counted";
    EXPECT_LE(bench.held(), 1.12);
  }
}

// What is not kept is made again, so recomputation holds less and computes more, with the same gradients.
TEST(BenchLayer, FollowsWhatIsRecomputed) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  for (const char* precision : {"fp32", "bf16"}) {
    SCOPED_TRACE(precision);
    auto config = config_of(precision);
    config.memory.recompute = model::Recompute::kFull;
    EXPECT_LT(measure_layer(config, kShort).held(), 0.4);
  }
}

TEST(BenchLayer, InBf16MovesRowsBesideACopy) {
  const LayerBench bench = measure_layer(config_of("bf16"), kShort);
  EXPECT_EQ(bench.precision, "bf16");
  ASSERT_TRUE(bench.moves);
  EXPECT_DOUBLE_EQ(bench.moves->own.amount, (3 * 4096.0 + 2048) * 128 * 2);
  EXPECT_DOUBLE_EQ(bench.moves->copy.amount, 2 * 4096.0 * 128 * 2);
  EXPECT_THAT(layer_report(bench), HasSubstr("F4, proxy on one device"));
  const auto json = to_json(bench);
  EXPECT_EQ(json["f4_proxy"]["own"]["seconds"].size(), 2u);
  EXPECT_GT(json["f1_of_ceiling"].get<double>(), 0.0);
}

// What is timed is the layer: its gradients are those of one forward and backward, and twice as much of two.
TEST(BenchLayer, BackwardAddsToTheGradients) {
  MeasuredLayer layer(config_of("fp32"));
  const auto sums = [&] { return layer.expert_gradient().abs().sum().item<double>(); };
  EXPECT_EQ(sums(), 0.0);
  layer.forward();
  layer.backward();
  const double once = sums();
  EXPECT_GT(once, 0.0);
  layer.forward();
  layer.backward();
  EXPECT_NEAR(sums() / once, 2.0, 1e-3);
}

TEST(BenchLayer, RefusesAModelWithoutExperts) {
  auto config = config_of("fp32");
  config.moe.enabled = false;
  EXPECT_THROW(measure_layer(config, kShort), ConfigError);
}

}  // namespace
}  // namespace conclave::app
