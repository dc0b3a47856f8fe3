// SPDX-License-Identifier: Apache-2.0
// Training on the device path over ranks (threads), on tensors of the CPU: experts spread over them, optimizer state
// shared by them, both; against the host path, and what the host may look at.
#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>

#include "comm/fake_nccl.h"
#include "comm/nccl_transport.h"
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

constexpr auto kFast = parallel::Reduction::kFast;
constexpr int64_t kMoeLayers = 2;

LayoutCase on_device(LayoutCase layout_case, at::ScalarType compute = at::kFloat) {
  layout_case.device = model::DevicePath{.device = at::kCPU, .compute = compute};
  return layout_case;
}

std::vector<LayoutCase> cases() {
  std::vector<LayoutCase> all;
  for (const auto& layout_case : layout_cases())
    if (!layout_config(layout_case).moe.capacity.factor) all.push_back(layout_case);
  return all;
}

std::string name_of(Layout layout) { return fmt::format("dp {} ep {} zero {}", layout.dp, layout.ep, layout.zero); }

void on_ranks(Layout layout, const std::function<void(const comm::Group&)>& body) {
  SCOPED_TRACE(name_of(layout));
  run_ranks(layout.ranks(), body);
}

TEST(DeviceTrainingRanks, TakeTheFirstStepOfOneRankOnTheHost) {
  for (const LayoutCase& layout_case : cases()) {
    SCOPED_TRACE(layout_case.name);
    const auto alone = run_layout({}, {}, layout_case, kFast);
    for (const Layout layout : {Layout{2, 2, 0}, Layout{4, 2, 0}, Layout{4, 4, 0}, Layout{2, 2, 1}, Layout{4, 2, 1}})
      on_ranks(layout, [&](const comm::Group& world) {
        expect_close(run_layout(world, layout, on_device(layout_case), kFast), alone);
      });
  }
}

TEST(DeviceTrainingRanks, ShareOptimizerStateWithoutExperts) {
  const LayoutCase dense{.name = "Dense", .change = [](auto& config) { config.moe.enabled = false; }};
  const auto alone = run_layout({}, {}, dense, kFast);
  for (const Layout layout : {Layout{2, 1, 1}, Layout{4, 1, 1}})
    on_ranks(layout, [&](const comm::Group& world) {
      expect_close(run_layout(world, layout, on_device(dense), kFast), alone);
    });
}

LayoutCase long_case() {
  return {.name = "Long",
          .change =
              [](auto& config) {
                config.train.steps = 100;
                config.optim.lr = 3e-3, config.optim.min_lr = 3e-4;
              },
          .padding = true};
}

void expect_report(const train::StepReport& own, const train::StepReport& expected) {
  EXPECT_NEAR(own.loss / expected.loss, 1.0, 1e-4);
  EXPECT_NEAR(own.grad_norm / expected.grad_norm, 1.0, 1e-3);
  for (size_t l = 0; l < own.layers.size(); ++l) {
    EXPECT_EQ(own.layers[l].chosen_E, expected.layers[l].chosen_E);
    EXPECT_EQ(own.layers[l].tokens, expected.layers[l].tokens);
    EXPECT_NEAR(own.layers[l].entropy / expected.layers[l].entropy, 1.0, 1e-4);
  }
}

TEST(DeviceTrainingRanks, FollowTheHostForTwentySteps) {
  std::vector<train::StepReport> expected;
  RankRun host({}, {}, long_case(), kFast);
  for (int64_t i = 0; i < 20; ++i) expected.push_back(host.step(i));
  for (const Layout layout : {Layout{2, 2, 0}, Layout{4, 2, 0}, Layout{4, 2, 1}, Layout{2, 1, 1}})
    on_ranks(layout, [&](const comm::Group& world) {
      RankRun device(world, layout, on_device(long_case()), kFast);
      for (int64_t i = 0; i < 20; ++i) {
        SCOPED_TRACE(i);
        expect_report(device.step(i), expected[i]);
      }
      const int64_t micro_batches = 8 / layout.dp, exchanges = layout.ep > 1 ? micro_batches * kMoeLayers : 0;
      EXPECT_EQ(device.model().reads().count(), 20 * (1 + exchanges))
          << "one look for each step, and one for each exchange of counts";
    });
}

// What is made again in backward is made from the plan: the same bits, and no look more.
TEST(DeviceTrainingRanks, MakeAgainWhatTheyDoNotKeep) {
  const Layout layout{2, 2, 0};
  on_ranks(layout, [&](const comm::Group& world) {
    const auto run = [&](model::Recompute recompute, moe::BackwardRows rows) {
      LayoutCase layout_case = on_device(long_case());
      layout_case.change = [=, change = layout_case.change](train::RunConfig& config) {
        change(config);
        config.memory.recompute = recompute, config.moe.dispatch.backward_rows = rows;
      };
      RankRun rank(world, layout, layout_case, kFast);
      rank.step(0);
      EXPECT_EQ(rank.model().reads().count(), 1 + 4 * kMoeLayers);
      return rank.all_state();
    };
    const auto kept = run(model::Recompute::kNone, moe::BackwardRows::kKeep);
    EXPECT_EQ(run(model::Recompute::kNone, moe::BackwardRows::kResend), kept);
    EXPECT_EQ(run(model::Recompute::kFull, moe::BackwardRows::kKeep), kept);
  });
}

TEST(DeviceTrainingRanks, HaveTheSameBitsEveryTime) {
  for (const Layout layout : {Layout{4, 2, 0}, Layout{4, 2, 1}})
    on_ranks(layout, [&](const comm::Group& world) {
      const LayoutCase layout_case = on_device({.name = "Plain", .padding = true});
      expect_same(run_layout(world, layout, layout_case, kFast), run_layout(world, layout, layout_case, kFast));
    });
}

// Products read copies in bf16, which must be those of the new weights of every owner.
TEST(DeviceTrainingRanks, ComputeInBf16WithTheWeightsOfEveryOwner) {
  std::vector<train::StepReport> expected;
  RankRun alone({}, {}, on_device(long_case(), at::kBFloat16), kFast);
  for (int64_t i = 0; i < 10; ++i) expected.push_back(alone.step(i % 2));
  for (const Layout layout : {Layout{2, 1, 1}, Layout{4, 2, 1}})
    on_ranks(layout, [&](const comm::Group& world) {
      RankRun run(world, layout, on_device(long_case(), at::kBFloat16), kFast);
      for (int64_t i = 0; i < 10; ++i) {
        const auto report = run.step(i % 2);
        EXPECT_NEAR(report.loss / expected[i].loss, 1.0, 5e-3) << "step " << i;
      }
      for (const auto& parameter : run.parameters().all()) {
        if (parameter.kind == nn::ParameterKind::kRouter) continue;
        const Tensor masters = nn::view_of(run.parameters().flat(parameter.expert), parameter);
        run.model().refresh();
        const auto id = static_cast<nn::ParameterId>(&parameter - run.parameters().all().data());
        EXPECT_TRUE(run.parameters().value(id).equal(masters.to(at::kBFloat16))) << parameter.parts[0].name;
      }
    });
}

TEST(DeviceTrainingRanks, HoldTheirShareOfTheMomentsAlone) {
  const LayoutCase large =
      on_device({.name = "LargeVocabulary", .change = [](auto& config) { config.model.vocab_size = 4096; }});
  RankRun alone({}, {}, large, kFast);
  std::vector<int64_t> dense(4), expert(4);
  on_ranks({4, 2, 1}, [&](const comm::Group& world) {
    RankRun run(world, {4, 2, 1}, large, kFast);
    dense[world.rank()] = run.training().optimizer(false).first_moment().numel();
    expert[world.rank()] = run.training().optimizer(true).second_moment().numel();
  });
  for (const auto& [counts, kind] : {std::pair(&dense, false), std::pair(&expert, true)}) {
    const int64_t all = alone.training().optimizer(kind).first_moment().numel();
    EXPECT_EQ(std::accumulate(counts->begin(), counts->end(), int64_t{0}), all);
    EXPECT_LT(*std::max_element(counts->begin(), counts->end()), all / 2);
  }
}

TEST(DeviceTrainingRanks, SkipAGradientThatIsNotFiniteOnAllRanks) {
  for (const Layout layout : {Layout{2, 2, 0}, Layout{2, 2, 1}})
    on_ranks(layout, [&](const comm::Group& world) {
      RankRun run(world, layout, on_device({.name = "Nan"}), kFast, "gradient:3:1=nan");
      const auto before = run.all_state();
      const auto report = run.step(0);
      ASSERT_TRUE(report.skipped.has_value());
      EXPECT_THAT(*report.skipped, ::testing::HasSubstr("gradient of embedding.weight is not finite"));
      EXPECT_EQ(run.all_state(), before);
      EXPECT_FALSE(run.step(1).skipped);
    });
}

// The whole step over NCCL, which is made up: nothing is there before the stream that brings it was waited for.
TEST(DeviceTrainingRanks, TrainOverNccl) {
  const LayoutCase layout_case{.name = "Plain", .padding = true};
  const auto alone = run_layout({}, {}, layout_case, kFast);
  const auto fabric = std::make_shared<FakeFabric>();
  for (const Layout layout : {Layout{2, 2, 0}, Layout{2, 2, 1}, Layout{2, 1, 1}})
    on_ranks(layout, [&](const comm::Group& host) {
      const auto nccl = std::make_shared<FakeNccl>(fabric);
      const comm::Group world(std::make_shared<StagedTransport>(comm::make_nccl_transport(nccl, host), nccl));
      expect_close(run_layout(world, layout, on_device(layout_case), kFast), alone);
    });
}

}  // namespace
}  // namespace conclave::test
