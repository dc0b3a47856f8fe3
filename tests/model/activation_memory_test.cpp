// SPDX-License-Identifier: Apache-2.0
// What a training forward keeps for backward, counted by the allocator: of an MoE layer little more than its input and
// the pre-activations of its experts (figure F6: at most 1.10 times T·h + 2·T·k·f numbers), and less with
// recomputation.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "model/executor.h"
#include "model/executors/sequential.h"
#include "support/allocator.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using test::bytes_in_use;

model::TransformerConfig config_of(model::Recompute recompute) {
  auto config = testing::tiny_config();
  config.model.vocab_size = 23;
  config.model.hidden_size = 128;
  config.model.head_dim = 32;
  config.model.num_layers = 2;
  config.model.max_seq_len = 256;
  config.moe.num_experts = int64_t{8};
  config.moe.top_k = 2;
  config.moe.expert_hidden_size = 192;
  config.moe.num_shared_experts = 0;
  config.memory.recompute = recompute;
  config.dtype = at::kFloat;
  return config;
}

struct Kept {
  int64_t moe_layer = 0, all = 0;
};

// Bytes that stay between forward and backward, as the executor leaves them: of the first layer's MoE part, with its
// input, and of the whole model.
Kept kept_bytes(model::Recompute recompute, const Batch& batch) {
  const model::Transformer m(config_of(recompute));
  nn::Gradients gradients{at::zeros_like(m.parameters().flat(false)), {at::zeros_like(m.parameters().flat(true))}};
  nn::Frame frame = m.frame(batch, &gradients);
  const int64_t before = bytes_in_use();
  model::SequentialExecutor(m).forward(frame);
  Kept kept{.all = bytes_in_use() - before};
  nn::Frame counted = m.frame(batch, &gradients);
  int64_t start = 0;
  for (size_t s = 0; s < m.stages().size(); ++s) {
    auto& stage = *m.stages()[s];
    if (stage.name() == "layers.0.moe.route") start = bytes_in_use();
    stage.forward(counted);
    for (const nn::Slot slot : m.stage_memory()[s].unread) counted.value(slot) = Tensor();
    for (const size_t dropped : m.stage_memory()[s].dropped) {
      counted.forget(static_cast<int>(dropped));
      for (const nn::Slot slot : m.stages()[dropped]->outputs()) counted.value(slot) = Tensor();
    }
    // The residual's output takes the place of the layer's input, which was there before.
    if (stage.name() == "layers.0.ffn_residual") kept.moe_layer = bytes_in_use() - start;
  }
  return kept;
}

TEST(ActivationMemory, AnMoeLayerKeepsItsInputAndPreActivations) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  at::set_num_threads(1);
  const Batch batch = testing::random_batch(8, 256, 23, 1);
  const int64_t T = 2048, h = 128, k = 2, f = 192;
  const Kept kept = kept_bytes(model::Recompute::kNone, batch);
  const double ratio = static_cast<double>(kept.moe_layer) / static_cast<double>(4 * (T * h + 2 * T * k * f));
  RecordProperty("ratio", fmt::format("{:.3f}", ratio));
  EXPECT_LE(ratio, 1.10);
  EXPECT_GE(ratio, 1.0) << "less than the least: the test does not see the memory";
}

TEST(ActivationMemory, EveryLevelOfRecomputationKeepsLess) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  at::set_num_threads(1);
  const Batch batch = testing::random_batch(8, 256, 23, 1);
  const int64_t none = kept_bytes(model::Recompute::kNone, batch).all;
  const int64_t selective = kept_bytes(model::Recompute::kSelective, batch).all;
  const int64_t full = kept_bytes(model::Recompute::kFull, batch).all;
  const int64_t normalised = 2 * 2 * 2048 * 128 * int64_t{sizeof(float)};  // two norms of two layers
  EXPECT_NEAR(static_cast<double>(none - selective), static_cast<double>(normalised), 0.05 * normalised);
  EXPECT_LT(full, 0.35 * static_cast<double>(none));
  // Two layers: two pre-activations of two experts of 192 each for a token; queries, keys, values, output.
  const int64_t ffn = selective - kept_bytes(model::Recompute::kFfn, batch).all;
  const int64_t pre_activations = 2 * 2048 * 2 * 2 * 192 * int64_t{sizeof(float)};
  EXPECT_NEAR(static_cast<double>(ffn), static_cast<double>(pre_activations), 0.1 * pre_activations);
  const int64_t attention = selective - kept_bytes(model::Recompute::kAttention, batch).all;
  EXPECT_GT(attention, 2 * 2048 * 2 * 128 * int64_t{sizeof(float)}) << "at least queries and output";
  EXPECT_LT(full, selective - ffn - attention);
}

// Of the MoE layers of an evaluation only the routers' decisions stay, for the statistics.
struct Evaluated {
  int64_t after = 0;  // bytes that a frame holds when forward has run
  int64_t grown = 0;  // bytes more in use when the frame is gone: windows that the ranks share
  double loss = 0;
};

Evaluated evaluate(int64_t layers, parallel::ExecutorType executor, const comm::Group& ranks = {}) {
  at::set_num_threads(1);
  auto config = config_of(model::Recompute::kNone);
  config.model.num_layers = layers;
  parallel::ParallelConfig mesh;
  mesh.ep = ranks.size();
  config.chunks = executor == parallel::ExecutorType::kChunked ? 3 : 1;
  const model::Transformer m(config, {ranks, mesh});
  const auto made = model::Executor::make({executor}, m);
  const Batch batch = testing::random_batch(8, 256, 23, 1, ranks.rank());
  Evaluated evaluated;
  ranks.barrier();
  const int64_t before = bytes_in_use();
  ranks.barrier();
  made->run({.count = 1,
             .begin = [&](int64_t) { return m.frame(batch, nullptr); },
             .end =
                 [&](int64_t, nn::Frame& frame) {
                   EXPECT_TRUE(m.hidden(frame).defined()) << "who samples reads it";
                   EXPECT_EQ(m.decision(frame, 0).statistics.tokens(), 2048);
                   evaluated.loss = frame.loss_sum;
                   ranks.barrier();
                   evaluated.after = bytes_in_use() - before;
                   ranks.barrier();
                 }});
  ranks.barrier();
  evaluated.grown = bytes_in_use() - before;
  ranks.barrier();
  return evaluated;
}

TEST(EvaluationMemory, KeepsNothingOfALayerButItsDecisions) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  using parallel::ExecutorType;
  constexpr int64_t kRows = int64_t{2} * 2048 * 128 * 4;  // of one layer's experts
  const double loss = evaluate(2, ExecutorType::kSequential).loss;
  for (const auto executor : {ExecutorType::kSequential, ExecutorType::kInterleaved, ExecutorType::kChunked}) {
    evaluate(1, executor);  // what is made on first use
    const auto evaluated = evaluate(2, executor);
    EXPECT_NEAR(evaluated.loss / loss, 1.0, 1e-6) << "something that was needed is gone";
    const int64_t two = evaluated.after, six = evaluate(6, executor).after;
    EXPECT_LT(six - two, 4 * kRows / 5) << "bytes of four layers";
    EXPECT_GT(two, kRows / 2) << "the test sees the last hidden states";
  }
}

// Rows that stay would pin the window, and the next layer's make it grow.
TEST(EvaluationMemoryRanks, SharedWindowsDoNotGrowWithTheLayers) {
  if (!test::allocator_counts()) GTEST_SKIP() << "a sanitizer's allocator does not count";
  const auto grown = [](int64_t layers) {
    int64_t bytes = 0;
    test::run_ranks(2, [&](const comm::Group& ranks) {
      const auto evaluated = evaluate(layers, parallel::ExecutorType::kSequential, ranks);
      if (ranks.rank() == 0) bytes = evaluated.grown;
    });
    return bytes;
  };
  grown(1);
  const int64_t two = grown(2), six = grown(6);
  EXPECT_GT(two, int64_t{1} << 20) << "the test sees the window";
  EXPECT_LT(static_cast<double>(six), 1.5 * static_cast<double>(two));
}

}  // namespace
}  // namespace conclave
