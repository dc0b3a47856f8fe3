// SPDX-License-Identifier: Apache-2.0
// moe.top_k by step (near-dense warm-up, methods.md 7.1).
#include <numeric>

#include "data/token_files.h"
#include "train/evaluator.h"
#include "train/layout_runs.h"
#include "train/run_result.h"

namespace conclave::test {
namespace {

constexpr auto kCanonical = parallel::Reduction::kCanonical;

LayoutCase scheduled(int64_t granularity = 1) {
  return {.name = "Scheduled", .change = [granularity](auto& config) {
            config.moe.top_k = std::vector<moe::TopKPhase>{{.until = 2, .k = 4}, {.until = 3, .k = 2}, {.k = 1}};
            config.moe.granularity = granularity;
            config.moe.balance.bias.update_rate = 0;
            config.moe.router.norm_topk_prob = false;
            config.train.steps = 5;
          }};
}

double choices_per_token(const moe::StepTotals& layer) {
  const auto all = std::accumulate(layer.dispatched_E.begin(), layer.dispatched_E.end(), int64_t{0});
  return static_cast<double>(all) / static_cast<double>(layer.tokens);
}

TEST(TopKSchedule, ChangesAtExactlyTheGivenSteps) {
  for (const int64_t granularity : {1, 2}) {
    RankRun run({}, {}, scheduled(granularity), kCanonical);
    for (const auto& [step, k] : {std::pair(0, 4), {1, 4}, {2, 2}, {3, 1}, {4, 1}}) {
      for (const auto& layer : run.step(step).layers) {
        EXPECT_EQ(choices_per_token(layer), k * granularity) << step;
        EXPECT_EQ(layer.top_k, k * granularity);
      }
    }
  }
}

TEST(TopKSchedule, GoesOnAfterAResumeWhereItWas) {
  RankRun whole({}, {}, scheduled(), kCanonical), resumed({}, {}, scheduled(), kCanonical);
  for (int64_t step = 0; step < 3; ++step) whole.step(step);
  const auto from = whole.state(), to = resumed.state();
  for (size_t i = 0; i < from.size(); ++i) std::copy(from[i].data.begin(), from[i].data.end(), to[i].data.begin());
  resumed.restore(3);
  const auto next = resumed.step(3);
  EXPECT_EQ(choices_per_token(next.layers[0]), 1);
  EXPECT_EQ(next.loss, whole.step(3).loss);
}

TEST(TopKSchedule, AnEvaluationUsesTheNumberOfItsStep) {
  const RankRun run({}, {}, scheduled(), kCanonical);
  const Batch batch = layout_batch(run.config(), false, 0, 0);
  for (const auto& [step, k] : {std::pair(0, 4), {2, 2}, {3, 1}, {1000, 1}}) {
    nn::Frame frame = run.model().frame(batch, nullptr, step);
    for (const auto& stage : run.model().stages()) stage->forward(frame);
    EXPECT_EQ(run.model().decision(frame, 0).choice.picks.count(), k * batch.tokens_count()) << step;
  }
}

TEST(TopKSchedule, CapacityIsThatOfTheStep) {
  auto limited = scheduled();
  limited.change = [change = limited.change](auto& config) {
    change(config);
    config.moe.capacity = {.factor = 1.0, .eval_factor = {}, .min = 1};
  };
  RankRun run({}, {}, limited, kCanonical);
  for (const auto& [step, k] : {std::pair(0, 4), {2, 2}, {3, 1}}) {
    // Of each micro-batch of 24 tokens and 8 experts, 8 in a step.
    int64_t most = 0;
    for (const auto& layer : run.step(step).layers)
      most = std::max(most, *std::max_element(layer.dispatched_E.begin(), layer.dispatched_E.end()));
    EXPECT_LE(most, 8 * 24 * k / 8) << step;
    EXPECT_GT(most, 8 * 24 * k / 8 * 2 / 3) << step;
  }
}

TEST(TopKSchedule, WhatIsEvaluatedAfterSoManyUpdatesIsTheLastStep) {
  const data::TemporaryDirectory directory;
  data::write_documents(directory / "tokens", {std::vector<int32_t>(2000, 7)}, 32);
  RankRun run({}, {}, scheduled(), kCanonical);
  data::LoaderOptions options{
      .data = run.config().data, .expected = {32, ""}, .micro_batch_size = 2, .global_batch_size = 16};
  options.data.train = options.data.valid = {{.name = "t", .path = directory / "tokens"}};
  const data::ValidationLoader loader(options, 1);
  for (const auto& [updates, k] : {std::pair(0, 4), {2, 4}, {3, 2}, {4, 1}, {9, 1}})
    EXPECT_EQ(train::evaluate(run.model(), loader, run.model().mesh(), updates)[0].layers[0].top_k, k) << updates;
}

TEST(TopKSchedule, FlopsAreTheSumOverTheSteps) {
  auto config = layout_config(scheduled());
  double expected = 0;
  for (const int64_t k : {4, 4, 2, 1, 1}) {
    auto one = config;
    one.moe.top_k = k, one.train.steps = 1;
    expected += train::planned_flops(one, model::Counter::kExact);
  }
  EXPECT_EQ(train::planned_flops(config, model::Counter::kExact), expected);
  config.train.steps = 2;  // ends before the schedule does
  auto four = config;
  four.moe.top_k = 4;
  EXPECT_EQ(train::planned_flops(config, model::Counter::kExact), train::planned_flops(four, model::Counter::kExact));
}

// It has one width in all steps, that of the last phase.
TEST(TopKSchedule, FlopsOfTheDenseTwinAreThoseOfTheLastPhase) {
  auto config = layout_config(scheduled());
  config.moe.enabled = false;
  auto last = config;
  last.moe.top_k = 1;
  EXPECT_EQ(train::planned_flops(config, model::Counter::kExact), train::planned_flops(last, model::Counter::kExact));
}

// What one expert for a token cannot have is refused if any phase has one, not only the last.
TEST(TopKSchedule, RulesSeeEveryPhase) {
  LayoutCase layout_case = scheduled();
  layout_case.change = [](auto& config) {
    config.moe.top_k = std::vector<moe::TopKPhase>{{.until = 2, .k = 1}, {.k = 2}};
    config.moe.router.type = "noisy_topk";
    config.moe.balance = {};
  };
  auto config = layout_config(layout_case);
  EXPECT_THROW(train::resolve(config, 1), ConfigError) << "its one weight is always 1 in the first steps";
  config = layout_config(layout_case);
  config.moe.top_k = 2;
  EXPECT_NO_THROW(train::resolve(config, 1));
}

TEST(TopKSchedule, MemoryIsPlannedForTheMostAndTheTwinForTheLast) {
  const auto config = layout_config(scheduled(2));
  const auto shape = model::model_shape(config.model, config.moe);
  EXPECT_EQ(shape.layers[0].most_picks, 8);
  EXPECT_EQ(shape.layers[0].top_k, 2);
}

}  // namespace
}  // namespace conclave::test
