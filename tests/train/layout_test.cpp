// SPDX-License-Identifier: Apache-2.0
// Training does not depend on how ranks share the work: the same bits with reduction canonical, the same to 1e-5 with
// fast. Ranks are threads here, processes in tests/launched.
#include "model/thread_check.h"
#include "support/moe_methods.h"
#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/resumed_runs.h"

namespace conclave::test {
namespace {

constexpr auto kCanonical = parallel::Reduction::kCanonical;
constexpr auto kFast = parallel::Reduction::kFast;

class LayoutRanks : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(LayoutRanks, CanonicalIsBitwiseAndFastIsClose) {
  const Alone alone(GetParam());
  for (const Layout layout : {Layout{2, 1}, Layout{2, 2}, Layout{4, 1}, Layout{4, 2}, Layout{4, 4}, Layout{8, 2}}) {
    run_ranks(static_cast<int>(layout.dp),
              [&](const comm::Group& world) { expect_layout_promise(world, layout, GetParam(), alone); });
  }
}

class ExecutorRanks : public ::testing::TestWithParam<LayoutCase> {};

// Of 8, 4, 2 and 1 micro-batches a rank.
TEST_P(ExecutorRanks, InterleavedIsBitwiseAndChunkedIsClose) {
  const Alone alone(GetParam());
  expect_executor_promises({}, {}, GetParam(), alone);
  for (const Layout layout : {Layout{2, 2}, Layout{4, 2}, Layout{4, 4}, Layout{8, 2}}) {
    run_ranks(static_cast<int>(layout.dp),
              [&](const comm::Group& world) { expect_executor_promises(world, layout, GetParam(), alone); });
  }
}

// The last one of three is alone in flight.
TEST(ExecutorOddRanks, AnOddNumberOfMicroBatches) {
  const LayoutCase odd{.name = "Odd", .change = [](auto& config) { config.train.global_batch_size = 12; }};
  const auto alone = run_layout({}, {}, odd, kFast);
  for (const int64_t in_flight : {1, 2, 3, 8})
    expect_close(run_layout({}, {.executor = parallel::ExecutorType::kInterleaved, .in_flight = in_flight}, odd, kFast),
                 alone);
  run_ranks(2, [&](const comm::Group& world) {
    for (const auto executor : {parallel::ExecutorType::kInterleaved, parallel::ExecutorType::kChunked})
      expect_close(run_layout(world, {.dp = 2, .ep = 2, .zero = 1, .executor = executor}, odd, kFast), alone);
  });
}

// With tensor-parallel ranks every lane communicates inside of its stages as well.
TEST(ExecutorTensorRanks, HaveThePromisesOfTheirLayout) {
  using parallel::ExecutorType;
  const LayoutCase wide{.name = "Wide", .change = [](auto& config) { config.train.micro_batch_size = 4; }};
  for (Layout layout : {Layout{.dp = 2, .ep = 4, .tp = 2}, Layout{.dp = 2, .ep = 2, .zero = 1, .tp = 2, .etp = 2}}) {
    run_ranks(4, [&](const comm::Group& world) {
      auto of_type = layout;
      const auto canonical = run_layout(world, of_type, wide, kCanonical),
                 fast = run_layout(world, of_type, wide, kFast);
      of_type.executor = ExecutorType::kInterleaved;
      expect_same(run_layout(world, of_type, wide, kCanonical), canonical);
      expect_close(run_layout(world, of_type, wide, kFast), fast);
      of_type.executor = ExecutorType::kChunked;
      expect_close(run_layout(world, of_type, wide, kFast), fast);
    });
  }
}

// Routers and policies with randomness, state or losses of their own.
std::vector<LayoutCase> router_cases() {
  std::vector<LayoutCase> cases;
  for (const auto& method : testing::router_methods()) {
    cases.push_back({.name = method.name, .change = [method](auto& config) {
                       const int64_t width = *config.moe.expert_hidden_size;
                       config.moe = method.config();
                       if (!config.moe.expert_hidden_size) config.moe.expert_hidden_size = width;
                     }});
  }
  return cases;
}

// Over dp and ep, executors, tp, and after a resume.
class RouterLayoutRanks : public ::testing::TestWithParam<LayoutCase> {};

TEST_P(RouterLayoutRanks, CanonicalIsBitwiseAndFastIsClose) {
  const Alone alone(GetParam());
  for (const Layout layout : {Layout{2, 2}, Layout{4, 2}}) {
    run_ranks(static_cast<int>(layout.dp), [&](const comm::Group& world) {
      expect_layout_promise(world, layout, GetParam(), alone);
      expect_executor_promises(world, layout, GetParam(), alone);
    });
  }
}

TEST_P(RouterLayoutRanks, TensorParallelRanksDecideTogether) {
  auto wide = GetParam();
  wide.change = [change = wide.change](auto& config) {
    config.model.num_key_value_heads = 4;
    config.train.micro_batch_size = 4;
    change(config);
  };
  const auto alone = run_layout({}, {}, wide, kFast);
  LayoutOutcome one;
  run_ranks(2, [&](const comm::Group& world) {
    for (const Layout& layout :
         {Layout{.tp = 2}, Layout{.tp = 2, .sequence_parallel = false}, Layout{.tp = 2, .etp = 2}})
      expect_close(run_layout(world, layout, wide, kFast), alone);
    auto mine = run_layout(world, {.tp = 2}, wide, kCanonical);
    if (world.rank() == 0) one = std::move(mine);
  });
  run_ranks(4, [&](const comm::Group& world) {
    expect_same(run_layout(world, {.dp = 2, .ep = 4, .zero = 1, .tp = 2}, wide, kCanonical), one);
  });
}

// One sequence over both ranks: what a token learns from the contexts of later ones, or from what stands in for an
// expert, comes from the other rank.
TEST(RouterContextRanks, ASequenceMayLieOnTwoRanks) {
  const std::vector<LayoutCase> cases = {
      {.name = "Context", .change = [](auto& config) { config.moe.router.context = true; }},
      {.name = "DenseBackpropGroup",
       .change = [](auto& config) { config.moe.router.type = "dense_backprop_group", config.moe.top_k = 3; }}};
  for (LayoutCase one : cases) {
    one.change = [change = one.change](auto& config) {
      change(config);
      config.moe.balance = {};
      config.train.micro_batch_size = 1;
    };
    const auto alone = run_layout({}, {}, one, kFast);
    run_ranks(2, [&](const comm::Group& world) {
      for (const bool sequence_parallel : {true, false})
        expect_close(run_layout(world, {.tp = 2, .sequence_parallel = sequence_parallel}, one, kFast), alone);
    });
  }
}

TEST_P(RouterLayoutRanks, AStateThatWasSavedGoesOnWithTheSameBits) { expect_resume_keeps_the_bits(GetParam()); }

// Saved on one rank, and taken up by two that share the batch, the experts and the state.
TEST_P(RouterLayoutRanks, ACheckpointGoesOnInAnotherLayoutWithTheSameBits) {
  const data::TemporaryDirectory directory;
  RankRun whole({}, {}, GetParam(), kCanonical);
  for (int64_t step = 0; step < 2; ++step) whole.step(step);
  RankStore({}, directory / "run").save(whole, 2);
  whole.step(2);
  const auto expected = whole.all_state();
  run_ranks(2, [&](const comm::Group& world) {
    RankRun run(world, {.dp = 2, .ep = 2, .zero = 1}, GetParam(), kCanonical);
    RankStore(world, directory / "run").load(run, 2);
    run.step(2);
    const auto state = run.all_state();
    ASSERT_EQ(state.size(), expected.size());
    for (const auto& [name, bytes] : expected) EXPECT_TRUE(state.at(name) == bytes) << name;
  });
}

// Every rank merges all experts: over dp alone.
TEST(MergeLayoutRanks, CanonicalIsBitwiseAndFastIsClose) {
  const LayoutCase lory{.name = "Lory", .change = [](auto& config) {
                          config.moe.router.type = "lory";
                          config.moe.router.lory = {.segment = 4};
                          config.moe.top_k = 1;
                          config.moe.balance = {};
                        }};
  const Alone alone(lory);
  for (const int64_t dp : {2, 4}) {
    run_ranks(static_cast<int>(dp), [&](const comm::Group& world) {
      for (const int64_t zero : {0, 1}) {
        const Layout layout{.dp = dp, .zero = zero};
        expect_same(run_layout(world, layout, lory, kCanonical), alone.canonical);
        expect_close(run_layout(world, layout, lory, kFast), alone.fast);
      }
      expect_executor_promises(world, {.dp = dp}, lory, alone);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All, RouterLayoutRanks, ::testing::ValuesIn(router_cases()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(All, ExecutorRanks, ::testing::ValuesIn(layout_cases()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(All, LayoutRanks, ::testing::ValuesIn(layout_cases()),
                         [](const auto& info) { return info.param.name; });

LayoutCase with_rounded_rows(moe::BackwardRows backward, moe::DispatchPayload payload = moe::DispatchPayload::kBf16) {
  return {.name = "Rounded", .change = [=](auto& config) {
            config.moe.dispatch.payload = payload;
            config.moe.dispatch.backward_rows = backward;
          }};
}

// What is rounded depends on the hosts and on nothing else.
TEST(LayoutPayloadRanks, RoundedRowsHaveTheSameBitsWhoeverOwnsStateAndWhateverOverlaps) {
  const auto plain = run_layout({}, {}, {.name = "Plain"}, kCanonical);
  for (const auto& [dispatch, payload] : {std::pair(moe::DispatchType::kAllToAll, moe::DispatchPayload::kBf16),
                                          std::pair(moe::DispatchType::kHierarchical, moe::DispatchPayload::kBf16),
                                          std::pair(moe::DispatchType::kAllToAll, moe::DispatchPayload::kFp8)}) {
    run_ranks_on({0, 0, 1, 1}, [&, dispatch = dispatch, payload = payload](const comm::Group& world) {
      const Layout layout{.dp = 4, .ep = 4, .dispatch = dispatch};
      const auto kept = with_rounded_rows(moe::BackwardRows::kKeep, payload),
                 sent = with_rounded_rows(moe::BackwardRows::kResend, payload);
      const auto first = run_layout(world, layout, kept, kCanonical);
      EXPECT_NE(first.losses, plain.losses) << "nothing was rounded";
      EXPECT_NEAR(first.losses[0] / plain.losses[0], 1.0, payload == moe::DispatchPayload::kFp8 ? 5e-2 : 1e-2);
      expect_same(run_layout(world, layout, kept, kCanonical), first);
      for (const int64_t zero : {0, 1}) {
        for (const auto executor : {parallel::ExecutorType::kSequential, parallel::ExecutorType::kInterleaved}) {
          auto other = layout;
          other.zero = zero, other.executor = executor;
          expect_same(run_layout(world, other, sent, kCanonical), first);
        }
      }
    });
  }
}

TEST(LayoutPayloadRanks, NothingIsRoundedOnOneHost) {
  const auto plain = run_layout({}, {}, {.name = "Plain"}, kCanonical);
  run_ranks(4, [&](const comm::Group& world) {
    for (const auto dispatch : {moe::DispatchType::kAuto, moe::DispatchType::kAllToAll}) {
      const Layout layout{.dp = 4, .ep = 4, .dispatch = dispatch};
      expect_same(run_layout(world, layout, with_rounded_rows(moe::BackwardRows::kKeep), kCanonical), plain);
    }
  });
}

TEST(LayoutRepeat, TwoRunsFromTheSameStartHaveTheSameBits) {
  const LayoutCase plain{.name = "Plain"};
  for (const auto reduction : {kCanonical, kFast}) {
    for (const Layout layout : {Layout{1, 1}, Layout{2, 2, 1}, Layout{4, 2}, Layout{8, 4, 1}}) {
      LayoutOutcome first, second;
      for (LayoutOutcome* outcome : {&first, &second}) {
        run_ranks(layout.ranks(), [&](const comm::Group& world) {
          auto mine = run_layout(world, layout, plain, reduction);
          if (world.rank() == 0) *outcome = std::move(mine);
        });
      }
      expect_same(first, second);
    }
  }
}

TEST(LayoutRepeat, OneThreadAndTwoHaveTheSameBits) {
  // Large enough that every loop and product is worth two threads.
  const LayoutCase large{.name = "Large", .change = [](auto& config) {
                           config.model.vocab_size = 512, config.model.hidden_size = 128,
                           config.moe.expert_hidden_size = 128;
                           config.model.max_seq_len = config.data.seq_len = 192;
                           config.train.global_batch_size = 4, config.train.steps = 2;
                         }};
  for (const auto reduction : {kCanonical, kFast}) {
    const auto one = run_layout({}, {}, large, reduction, 1);
    expect_same(run_layout({}, {}, large, reduction, 2), one);
    expect_same(run_layout({}, {}, large, reduction, 3), one);
  }
  at::set_num_threads(1);
}

// What the start-up check of `canonical` lets through must keep its bits; what it refuses may not.
TEST(LayoutThreads, SizesThatTheStartUpCheckAcceptsHaveTheSameBitsOnAnyThreads) {
  const std::vector<LayoutCase> sizes = {
      {.name = "Even"},
      {.name = "SevenExperts", .change = [](auto& config) { config.moe.num_experts = 7; }},
      {.name = "TwentyExperts", .change = [](auto& config) { config.moe.num_experts = 20; }},
      {.name = "OddExpertWidth", .change = [](auto& config) { config.moe.expert_hidden_size = 26; }},
      {.name = "OddWidth", .change = [](auto& config) { config.model.hidden_size = 36, config.model.head_dim = 8; }},
      {.name = "OddHeads", .change = [](auto& config) { config.model.head_dim = 10; }},
      {.name = "OddVocabulary", .change = [](auto& config) { config.model.vocab_size = 91; }},
      {.name = "OddLength", .change = [](auto& config) { config.data.seq_len = config.model.max_seq_len = 131; }},
      {.name = "OddState", .change = [](auto& config) { config.moe.router.recurrent = {.hidden_size = 12}; }},
      {.name = "GatedSharedExpert", .change = [](auto& config) { config.moe.shared_gate = true; }}};
  int accepted = 0;
  for (auto size : sizes) {
    size.change = [change = size.change](auto& config) {
      config.data.seq_len = config.model.max_seq_len = 128;
      config.train.global_batch_size = 2, config.train.steps = 1;
      config.moe.expert_hidden_size = 32;
      change(config);
    };
    const auto config = layout_config(size);
    const auto shape = model::model_shape(config.model, config.moe);
    for (const int threads : {2, 3, 4}) {
      if (!model::thread_obstacle(shape, config.train.micro_batch_size * config.data.seq_len, threads).empty())
        continue;
      SCOPED_TRACE(fmt::format("{} on {} threads", size.name, threads));
      expect_same(run_layout({}, {}, size, kCanonical, threads), run_layout({}, {}, size, kCanonical));
      ++accepted;
    }
  }
  at::set_num_threads(1);
  EXPECT_GE(accepted, 3) << "the check refuses nearly everything";
}

}  // namespace
}  // namespace conclave::test
