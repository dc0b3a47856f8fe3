// SPDX-License-Identifier: Apache-2.0
// Training on the device path, run on tensors of the CPU, against the host path: the first step of every kind of model,
// twenty steps of one, and bf16.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>

#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

constexpr auto kFast = parallel::Reduction::kFast;
const model::DevicePath kInFloat{};
const model::DevicePath kInBf16{.device = at::kCPU, .compute = at::kBFloat16};

LayoutCase on_device(LayoutCase layout_case, const model::DevicePath& path = kInFloat) {
  layout_case.device = path;
  return layout_case;
}

std::vector<LayoutCase> cases() {
  std::vector<LayoutCase> all;
  for (const auto& layout_case : layout_cases())
    if (!layout_config(layout_case).moe.capacity.factor) all.push_back(layout_case);
  all.push_back(
      {.name = "DocumentMask", .change = [](auto& config) { config.data.document_mask = true; }, .padding = true});
  all.push_back({.name = "ModelScope", .change = [](auto& config) {
                   config.moe.balance.losses = {{.type = moe::LossType::kSwitch,
                                                 .coef = 0.05,
                                                 .convention = moe::Convention::kHuggingface,
                                                 .scope = moe::Scope::kModel}};
                 }});
  all.push_back({.name = "Dense", .change = [](auto& config) { config.moe.enabled = false; }});
  for (const auto recompute : {model::Recompute::kSelective, model::Recompute::kFull})
    all.push_back({.name = "Recompute", .change = [=](auto& config) { config.memory.recompute = recompute; }});
  return all;
}

TEST(DevicePath, TakesTheFirstStepOfTheHost) {
  for (const LayoutCase& layout_case : cases()) {
    SCOPED_TRACE(layout_case.name);
    expect_close(run_layout({}, {}, on_device(layout_case), kFast), run_layout({}, {}, layout_case, kFast));
  }
}

TEST(DevicePathRanks, SumTheirGradients) {
  for (const LayoutCase& layout_case :
       {LayoutCase{.name = "Plain", .padding = true},
        LayoutCase{.name = "Dense", .change = [](auto& config) { config.moe.enabled = false; }}}) {
    const auto alone = run_layout({}, {}, layout_case, kFast);
    for (const int64_t dp : {2, 4})
      run_ranks(static_cast<int>(dp), [&](const comm::Group& world) {
        expect_close(run_layout(world, {.dp = dp}, on_device(layout_case), kFast), alone);
      });
  }
}

TEST(DevicePath, HasTheSameBitsEveryTime) {
  const LayoutCase layout_case = on_device({.name = "Plain", .padding = true});
  expect_same(run_layout({}, {}, layout_case, kFast), run_layout({}, {}, layout_case, kFast));
}

// Of both routings of a step: tokens with another expert, at most.
int64_t moved(const train::StepReport& a, const train::StepReport& b) {
  int64_t sum = 0;
  for (size_t l = 0; l < a.layers.size(); ++l)
    for (size_t e = 0; e < a.layers[l].chosen_E.size(); ++e)
      sum += std::abs(a.layers[l].chosen_E[e] - b.layers[l].chosen_E[e]);
  return sum / 2;
}

LayoutCase long_case() {
  return {.name = "Long", .change = [](auto& config) {
            config.train.steps = 100;
            config.optim.lr = 3e-3, config.optim.min_lr = 3e-4;
          }};
}

TEST(DevicePath, FollowsTheHostForTwentyStepsAndReportsTheSameFigures) {
  RankRun host({}, {}, long_case(), kFast), device({}, {}, on_device(long_case()), kFast);
  for (int64_t i = 0; i < 20; ++i) {
    SCOPED_TRACE(i);
    const auto expected = host.step(i), own = device.step(i);
    EXPECT_NEAR(own.loss / expected.loss, 1.0, 1e-4);
    EXPECT_NEAR(own.grad_norm / expected.grad_norm, 1.0, 1e-3);
    EXPECT_EQ(moved(own, expected), 0);
    for (size_t l = 0; l < own.layers.size(); ++l) {
      const auto &a = own.layers[l], &b = expected.layers[l];
      EXPECT_EQ(a.tokens, b.tokens);
      EXPECT_EQ(a.dropped, 0);
      EXPECT_NEAR(a.entropy / b.entropy, 1.0, 1e-4);
      EXPECT_NEAR(a.lse_squared / b.lse_squared, 1.0, 1e-3);
      ASSERT_EQ(a.losses.size(), b.losses.size());
      for (size_t k = 0; k < a.losses.size(); ++k) EXPECT_NEAR(a.losses[k] / b.losses[k], 1.0, 1e-3);
    }
  }
  EXPECT_EQ(device.model().reads().count(), 20) << "one look of the host for each step";
}

TEST(DevicePath, LooksOnceAStepHoweverManyMicroBatchesAndLayers) {
  const LayoutCase layers{.name = "Layers", .change = [](auto& config) { config.model.num_layers = 4; }};
  RankRun run({}, {}, on_device(layers), kFast);
  run.step(0);
  EXPECT_EQ(run.model().reads().count(), 1);
}

TEST(DevicePath, SkipsAGradientThatIsNotFiniteAndNamesItsTensor) {
  RankRun run({}, {}, on_device({.name = "Nan"}), kFast, "gradient:3=nan");
  const auto before = run.all_state();
  const auto report = run.step(0);
  ASSERT_TRUE(report.skipped.has_value());
  EXPECT_THAT(*report.skipped, ::testing::HasSubstr("gradient of embedding.weight is not finite"));
  EXPECT_EQ(run.all_state(), before);
  EXPECT_FALSE(run.step(1).skipped);
}

// From one path to the other and back, in the middle of a run: what moves is what a checkpoint has.
TEST(DevicePath, TakesOverTheStateOfTheHostAndGivesItBack) {
  RankRun host({}, {}, long_case(), kFast), moving({}, {}, on_device(long_case()), kFast),
      back({}, {}, long_case(), kFast);
  const auto move_state = [](RankRun& from, RankRun& to, int64_t updates) {
    train::HostCopies source(from.model()), target(to.model());
    const auto have = train::full_state(from.model(), from.training(), from.model().mesh(), &source);
    const auto take = train::full_state(to.model(), to.training(), to.model().mesh(), &target);
    ASSERT_EQ(have.size(), take.size());
    for (size_t i = 0; i < have.size(); ++i) {
      ASSERT_EQ(have[i].name + have[i].role, take[i].name + take[i].role);
      std::copy(have[i].data.begin(), have[i].data.end(), take[i].data.begin());
    }
    target.write_back();
    to.restore(updates);
  };
  for (int64_t i = 0; i < 4; ++i) host.step(i);
  move_state(host, moving, 4);
  EXPECT_EQ(moving.all_state(), host.all_state());
  for (int64_t i = 4; i < 8; ++i) EXPECT_NEAR(moving.step(i).loss / host.step(i).loss, 1.0, 1e-5);
  move_state(moving, back, 8);
  EXPECT_EQ(back.all_state(), moving.all_state());
  for (int64_t i = 8; i < 12; ++i) EXPECT_NEAR(back.step(i).loss / host.step(i).loss, 1.0, 1e-5);
}

// Loss over the last steps of a task that can be learned: the same few batches again and again.
double smoothed_loss(const LayoutCase& layout_case, int64_t steps, int64_t over) {
  RankRun run({}, {}, layout_case, kFast);
  double sum = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const auto report = run.step(i % 2);
    EXPECT_FALSE(report.skipped);
    if (i >= steps - over) sum += report.loss;
  }
  return sum / static_cast<double>(over);
}

TEST(DevicePath, InBf16LearnsLikeFloat) {
  const double exact = smoothed_loss(long_case(), 60, 10),
               rounded = smoothed_loss(on_device(long_case(), kInBf16), 60, 10);
  EXPECT_LT(exact, 2.6) << "the task is learned, else the curves say nothing (log 32 = 3.47)";
  EXPECT_NEAR(rounded / exact, 1.0, 0.02);
}

// Updates below bf16's rounding are kept by the masters.
TEST(DevicePath, KeepsMastersInFloat) {
  LayoutCase small{.name = "Small", .change = [](auto& config) {
                     config.optim.lr = 1e-6, config.optim.min_lr = 1e-6, config.optim.weight_decay = 0;
                   }};
  RankRun run({}, {}, on_device(small, kInBf16), kFast);
  const Tensor before = run.parameters().flat(false).clone(), copy = run.parameters().value(0).clone();
  EXPECT_EQ(copy.scalar_type(), at::kBFloat16);
  run.step(0);
  EXPECT_EQ(run.parameters().flat(false).scalar_type(), at::kFloat);
  const double move = (run.parameters().flat(false) - before).abs().max().item<double>();
  EXPECT_NEAR(move, 1e-6, 2e-7) << "the first step of Adam is lr for every element";
}

}  // namespace
}  // namespace conclave::test
