// SPDX-License-Identifier: Apache-2.0
// What backward makes again has the bits that forward had: every level of memory.recompute, and rows sent again,
// against a run that keeps everything.
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

LayoutCase with(model::Recompute recompute, moe::BackwardRows rows, bool dense_first) {
  return {.name = "Recompute",
          .change =
              [=](train::RunConfig& config) {
                config.memory.recompute = recompute;
                config.moe.dispatch.backward_rows = rows;
                config.moe.shared_gate = true;
                if (dense_first) config.moe.layers = moe::LayerPattern{.first_k_dense = 1};
                config.moe.capacity.factor = 1.25;
              },
          .padding = true};
}

TEST(RecomputeRanks, EveryLevelHasTheBitsOfKeepingAll) {
  using model::Recompute;
  using moe::BackwardRows;
  using parallel::ExecutorType;
  constexpr auto kFast = parallel::Reduction::kFast;
  for (const bool dense_first : {false, true}) {
    const auto fast = run_layout({}, {}, with(Recompute::kNone, BackwardRows::kKeep, dense_first), kFast);
    const auto kept =
        run_layout({}, {}, with(Recompute::kNone, BackwardRows::kKeep, dense_first), parallel::Reduction::kCanonical);
    for (const auto recompute :
         {Recompute::kNone, Recompute::kSelective, Recompute::kAttention, Recompute::kFfn, Recompute::kFull}) {
      for (const auto rows : {BackwardRows::kKeep, BackwardRows::kResend}) {
        const auto layout_case = with(recompute, rows, dense_first);
        expect_same(run_layout({}, {}, layout_case, parallel::Reduction::kCanonical), kept);
        run_ranks(2, [&](const comm::Group& world) {
          for (const auto executor : {ExecutorType::kSequential, ExecutorType::kInterleaved}) {
            const auto spread = run_layout(world, {.dp = 2, .ep = 2, .executor = executor}, layout_case,
                                           parallel::Reduction::kCanonical);
            if (world.rank() == 0) expect_same(spread, kept);
          }
          const auto chunked =
              run_layout(world, {.dp = 2, .ep = 2, .executor = ExecutorType::kChunked}, layout_case, kFast);
          if (world.rank() == 0) expect_close(chunked, fast);
        });
      }
    }
  }
}

TEST(RecomputeRanks, ExpertsOfDifferentWidthsAreMadeAgainAsTheyWere) {
  const auto widths = [](model::Recompute recompute) {
    return LayoutCase{.name = "Widths", .change = [=](train::RunConfig& config) {
                        config.memory.recompute = recompute;
                        config.moe.expert_hidden_size = std::vector<int64_t>{8, 40, 16, 24, 32, 8, 48, 16};
                        config.moe.shared_hidden_size = 24;
                      }};
  };
  constexpr auto kCanonical = parallel::Reduction::kCanonical;
  const auto kept = run_layout({}, {}, widths(model::Recompute::kNone), kCanonical);
  for (const auto recompute : {model::Recompute::kFfn, model::Recompute::kFull}) {
    expect_same(run_layout({}, {}, widths(recompute), kCanonical), kept);
    run_ranks(2, [&](const comm::Group& world) {
      const auto spread = run_layout(world, {.dp = 2, .ep = 2, .zero = 1}, widths(recompute), kCanonical);
      if (world.rank() == 0) expect_same(spread, kept);
    });
  }
}

// Stages that read in backward what a dense expert gave.
TEST(RecomputeRanks, WhatStandsBesideTheExpertsIsMadeAgainToo) {
  const auto beside = [](model::Recompute recompute, bool gate) {
    return LayoutCase{.name = "Beside", .change = [=](train::RunConfig& config) {
                        config.memory.recompute = recompute;
                        config.moe.router.context = true;
                        config.moe.capacity.factor = 0.75, config.moe.capacity.min = 1;
                        config.moe.fallback = {.hidden_size = 16};
                        config.moe.branch = gate ? moe::Branch::kParallel : moe::Branch::kResidual;
                        if (gate) config.moe.branch_gate = "softmax";
                      }};
  };
  constexpr auto kCanonical = parallel::Reduction::kCanonical;
  for (const bool gate : {true, false}) {
    const auto kept = run_layout({}, {}, beside(model::Recompute::kNone, gate), kCanonical);
    for (const auto recompute :
         {model::Recompute::kSelective, model::Recompute::kAttention, model::Recompute::kFfn, model::Recompute::kFull})
      expect_same(run_layout({}, {}, beside(recompute, gate), kCanonical), kept);
  }
  const auto generalist = [](model::Recompute recompute) {
    return LayoutCase{.name = "Generalist", .change = [=](train::RunConfig& config) {
                        config.memory.recompute = recompute;
                        config.moe.shared_merge = "mean";
                      }};
  };
  const auto kept = run_layout({}, {}, generalist(model::Recompute::kNone), kCanonical);
  for (const auto recompute : {model::Recompute::kFfn, model::Recompute::kFull})
    expect_same(run_layout({}, {}, generalist(recompute), kCanonical), kept);
}

// What tokens get from experts that compute nothing, with vectors that learn (MoE++) or that steps move (Default MoE).
TEST(RecomputeRanks, WhatStaysAtHomeIsMadeAgainToo) {
  const auto home = [](model::Recompute recompute, bool learned) {
    return LayoutCase{.name = "Home", .change = [=](train::RunConfig& config) {
                        config.memory.recompute = recompute;
                        config.moe.router.type = learned ? "zero_compute" : "default_moe";
                        if (learned)
                          config.moe.router.zero_compute = {.zero = 1, .copy = 1, .constant = 2};
                        else
                          config.moe.router.default_moe = {.decay = 0.5};
                        config.moe.top_k = 3;
                        config.moe.capacity.factor = 1.0, config.moe.capacity.min = 1;
                        config.moe.balance = {.losses = {{.coef = 0.1}}, .bias = {}};
                      }};
  };
  constexpr auto kCanonical = parallel::Reduction::kCanonical;
  for (const bool learned : {true, false}) {
    const auto kept = run_layout({}, {}, home(model::Recompute::kNone, learned), kCanonical);
    for (const auto recompute : {model::Recompute::kFfn, model::Recompute::kFull}) {
      expect_same(run_layout({}, {}, home(recompute, learned), kCanonical), kept);
      run_ranks(2, [&](const comm::Group& world) {
        expect_same(run_layout(world, {.dp = 2, .ep = 2}, home(recompute, learned), kCanonical), kept);
      });
    }
  }
}

}  // namespace
}  // namespace conclave::test
