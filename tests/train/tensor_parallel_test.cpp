// SPDX-License-Identifier: Apache-2.0
// Tensor, sequence and expert tensor parallelism change nothing but rounding: one step is within 1e-5 of one rank's,
// and at a given tp the bits do not depend on dp, ep or who owns what. Replicas of whole parameters stay bit-equal,
// which the tests' assembly of state checks on every comparison.
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

// The cases of the layout tests, large enough for four tensor-parallel ranks.
LayoutCase widened(LayoutCase layout_case) {
  const auto change = layout_case.change;
  layout_case.change = [change](train::RunConfig& config) {
    config.model.num_key_value_heads = 4;
    config.model.max_seq_len = config.data.seq_len = 16;
    config.train.micro_batch_size = 4;
    change(config);
  };
  return layout_case;
}

std::vector<LayoutCase> tensor_cases() {
  std::vector<LayoutCase> cases;
  for (const auto& layout_case : layout_cases()) cases.push_back(widened(layout_case));
  cases.push_back(widened({.name = "Dense", .change = [](auto& config) {
                             config.moe.enabled = false;
                             config.moe.balance = {};
                             config.model.ffn_hidden_size = 48;
                             config.model.vocab_size = 37;
                           }}));
  cases.push_back(widened({.name = "FullNormSmallVocabulary", .change = [](auto& config) {
                             config.model.qk_norm = model::QkNorm::kFull;
                             config.model.vocab_size = 6;
                             config.model.tie_embeddings = true;
                           }}));
  cases.push_back(widened({.name = "ExpertWidths", .change = [](auto& config) {
                             config.moe.expert_hidden_size = std::vector<int64_t>{8, 40, 16, 24, 32, 8, 48, 16};
                             config.moe.shared_hidden_size = 24;
                             config.moe.experts.dropout = 0.3;
                             config.moe.balance.losses = {{.type = moe::LossType::kPenalty, .coef = 0.05}};
                           }}));
  cases.push_back(widened({.name = "RecomputeAll", .change = [](auto& config) {
                             config.memory.recompute = model::Recompute::kFull;
                             config.moe.dispatch.backward_rows = moe::BackwardRows::kResend;
                           }}));
  return cases;
}

std::vector<Layout> tensor_layouts() {
  return {{.tp = 2},
          {.tp = 2, .sequence_parallel = false},
          {.ep = 2, .zero = 1, .tp = 2},
          {.ep = 2, .tp = 2, .sequence_parallel = false},
          {.tp = 2, .etp = 2},
          {.dp = 2, .ep = 4, .zero = 1, .tp = 2},
          {.dp = 2, .ep = 2, .zero = 1, .tp = 2, .etp = 2},
          {.dp = 2, .ep = 1, .zero = 1, .tp = 2, .etp = 2, .sequence_parallel = false}};
}

bool dense(const LayoutCase& layout_case) { return layout_case.name == "Dense"; }

class TensorParallelRanks : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(TensorParallelRanks, OneStepIsWithinTheRoundingOfOneRank) {
  const LayoutOutcome alone = run_layout(comm::Group(), {}, GetParam(), parallel::Reduction::kFast);
  for (const Layout& layout : tensor_layouts()) {
    if (dense(GetParam()) && layout.ep * layout.etp > 1) continue;
    SCOPED_TRACE(fmt::format("dp {} tp {} ep {} etp {} zero {}, tokens {}", layout.dp, layout.tp, layout.ep, layout.etp,
                             layout.zero, layout.sequence_parallel ? "shared out" : "whole"));
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      expect_close(run_layout(world, layout, GetParam(), parallel::Reduction::kFast), alone);
    });
  }
}

TEST_P(TensorParallelRanks, AtAGivenTpTheBitsDoNotDependOnDp) {
  LayoutOutcome one;
  run_ranks(2, [&](const comm::Group& world) {
    auto mine = run_layout(world, {.tp = 2}, GetParam(), parallel::Reduction::kCanonical);
    if (world.rank() == 0) one = std::move(mine);
  });
  for (const Layout& layout : {Layout{.ep = 2, .zero = 1, .tp = 2}, Layout{.dp = 2, .ep = 1, .zero = 1, .tp = 2},
                               Layout{.dp = 2, .ep = 4, .tp = 2}, Layout{.dp = 4, .ep = 2, .zero = 1, .tp = 2}}) {
    if (dense(GetParam()) && layout.ep > 1) continue;
    SCOPED_TRACE(fmt::format("dp {} ep {} zero {}", layout.dp, layout.ep, layout.zero));
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      expect_same(run_layout(world, layout, GetParam(), parallel::Reduction::kCanonical), one);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All, TensorParallelRanks, ::testing::ValuesIn(tensor_cases()),
                         [](const auto& info) { return info.param.name; });

// Of t ranks that share a micro-batch each sends its tokens' rows alone: together every pair of a token and its expert
// once (methods.md 3.7).
TEST(TensorParallelVolumeRanks, EveryRankSendsItsShareOfTheRowsOverEp) {
  const auto plain = widened({.name = "Plain"});
  for (const int64_t tp : {2, 4}) {
    for (const bool sequence_parallel : {true, false}) {
      run_ranks(static_cast<int>(tp), [&](const comm::Group& world) {
        RankRun run(world, {.ep = tp, .tp = tp, .sequence_parallel = sequence_parallel}, plain,
                    parallel::Reduction::kFast);
        const Batch batch = layout_batch(run.config(), false, 0, 0);
        nn::Frame frame = run.model().frame(batch, nullptr);
        for (const auto& stage : run.model().stages()) stage->forward(frame);
        const int64_t own = batch.tokens_count() / tp, k = run.config().moe.top_k;
        for (const int layer : {0, 1}) {
          const auto& decision = run.model().decision(frame, layer);
          EXPECT_EQ(decision.routing.pairs(), own * k);
          EXPECT_EQ(decision.first_token, own * world.rank());
          EXPECT_EQ(decision.choice.picks.count(), batch.tokens_count() * k) << "all ranks know all choices";
        }
      });
    }
  }
}

TEST(TensorParallelFourRanks, HoldsTheSamePromise) {
  for (const bool sequence_parallel : {true, false}) {
    const auto plain = widened({.name = "Plain"});
    const LayoutOutcome alone = run_layout(comm::Group(), {}, plain, parallel::Reduction::kFast);
    for (const Layout& layout :
         {Layout{.ep = 4, .tp = 4}, Layout{.ep = 2, .zero = 1, .tp = 4, .etp = 2}, Layout{.ep = 1, .tp = 4, .etp = 4},
          Layout{.dp = 2, .ep = 2, .zero = 1, .tp = 4, .etp = 4}}) {
      Layout changed = layout;
      changed.sequence_parallel = sequence_parallel;
      run_ranks(changed.ranks(), [&](const comm::Group& world) {
        expect_close(run_layout(world, changed, plain, parallel::Reduction::kFast), alone);
      });
    }
  }
}

// Every axis at 8, with as many heads and experts.
TEST(TensorParallelEightRanks, HoldsTheSamePromise) {
  const auto wide = widened({.name = "Eight", .change = [](auto& config) {
                               config.model.num_key_value_heads = config.model.num_attention_heads = 8;
                               config.model.head_dim = 8;
                               config.moe.expert_hidden_size = 32;
                             }});
  const LayoutOutcome alone = run_layout(comm::Group(), {}, wide, parallel::Reduction::kFast);
  for (const Layout& layout : {Layout{.dp = 4, .ep = 8, .zero = 1, .tp = 2}, Layout{.ep = 8, .tp = 8},
                               Layout{.ep = 1, .tp = 8, .etp = 8}, Layout{.ep = 4, .tp = 8, .etp = 2}}) {
    SCOPED_TRACE(fmt::format("dp {} tp {} ep {} etp {}", layout.dp, layout.tp, layout.ep, layout.etp));
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      expect_close(run_layout(world, layout, wide, parallel::Reduction::kFast), alone);
    });
  }
}

}  // namespace
}  // namespace conclave::test
