// SPDX-License-Identifier: Apache-2.0
#include "sweep/match.h"

#include <cmath>

#include "sweep/fixture.h"
#include "train/run_result.h"

namespace conclave::sweep {
namespace {

using testing::HasSubstr;

constexpr const char* kChoices = "axes: {moe.top_k: [1, 2, 4], moe.num_experts: [8, 16]}\n";

double deviation(double value, double target) { return std::abs(value / target - 1); }

TEST(Match, GivesRunsTheFlopsOfTheTargetWithinAThousandth) {
  const SweepFiles files;
  const auto plan = files.plan(std::string(kChoices) + "match: {flops: 1e13}\n");
  for (const auto& [record, config] : plan.runs) {
    EXPECT_LE(deviation(train::planned_flops(config, model::Counter::kPaper), 1e13), 1e-3) << record.cell;
    EXPECT_EQ(record.steps, config.train.steps);
  }
  EXPECT_GT(plan.runs.front().record.steps, plan.runs.back().record.steps) << "more experts a token, fewer steps";
}

TEST(Match, CountsByTheCounterThatIsNamed) {
  const SweepFiles files;
  const auto plan = files.plan(std::string(kChoices) + "match: {flops: 1e13, counter: exact}\n");
  for (const auto& run : plan.runs) {
    EXPECT_LE(deviation(train::planned_flops(run.config, model::Counter::kExact), 1e13), 1e-3);
    EXPECT_GT(deviation(train::planned_flops(run.config, model::Counter::kPaper), 1e13), 1e-3);
  }
}

TEST(Match, TakesTheBaseAsTarget) {
  const SweepFiles files;
  const auto plan = files.plan(std::string(kChoices) + "match: {flops: base}\n");
  for (const auto& run : plan.runs) {
    if (run.config.moe.top_k == 2) {
      EXPECT_EQ(run.record.steps, 1000) << run.record.cell;
    }
    EXPECT_LE(deviation(run.record.flops, plan.runs[2].record.flops), 2e-3);
  }
}

TEST(Match, SolvesTokens) {
  const SweepFiles files;
  const auto plan = files.plan("axes: {train.global_batch_size: [4, 8, 32]}\nmatch: {tokens: 2048000}\n");
  EXPECT_EQ(plan.runs[0].record.steps, 8000);
  EXPECT_EQ(plan.runs[1].record.steps, 4000);
  EXPECT_EQ(plan.runs[2].record.steps, 1000);
}

TEST(Match, SolvesActiveParametersByTheWidthOfExperts) {
  const SweepFiles files;
  const auto plan = files.plan("axes: {moe.top_k: [1, 2, 4]}\nmatch: {active_params: base}\n");
  EXPECT_EQ(plan.runs[0].config.moe.expert_hidden_size, 256);
  EXPECT_EQ(plan.runs[1].config.moe.expert_hidden_size, 128);
  EXPECT_EQ(plan.runs[2].config.moe.expert_hidden_size, 64);
  EXPECT_EQ(plan.runs[0].record.active, plan.runs[2].record.active);
}

TEST(Match, LetsTheWidthOfASharedExpertFollow) {
  const SweepFiles files;
  const auto plan = files.plan("axes: {moe.num_shared_experts: [0]}\nmatch: {active_params: base}\n");
  EXPECT_EQ(plan.runs[0].config.moe.expert_hidden_size, 128);
  // 3 experts of width w for each token are as wide as 2 of 128 where 3 w = 256: the nearest multiple of 16 is 80.
  EXPECT_THAT(files.refusal("axes: {moe.num_shared_experts: [1]}\nmatch: {active_params: base, tolerance: 1e-4}\n"),
              HasSubstr("80 of moe.expert_hidden_size"));
}

TEST(Match, WithoutAStepNearEnoughNamesTheNearestTwo) {
  const SweepFiles files;
  const auto said = files.refusal("axes: {moe.top_k: [1, 4]}\nmatch: {flops: 1e11}\n");
  EXPECT_THAT(said, HasSubstr("s.yaml:3:16: match.flops: 1e+11 cannot be met within 0.1%; the nearest are "));
  EXPECT_THAT(said, HasSubstr(" steps ("));
  EXPECT_THAT(said, HasSubstr("match.solve: both"));
  EXPECT_THAT(said, HasSubstr("in moe.top_k=1:"));
  EXPECT_THAT(said, HasSubstr("in moe.top_k=4:"));
  EXPECT_THAT(files.refusal("match: {tokens: 1}\n"), HasSubstr("1 steps (512, +5.11e+04%)"));
}

TEST(Match, OfBothTakesTheNearestWidthThatHasAStepNearEnough) {
  const SweepFiles files;
  const std::string text = "axes: {moe.top_k: [3]}\nmatch: {flops: 2.2e11, tolerance: 5e-4, solve: ";
  EXPECT_THAT(files.refusal(text + "steps}\n"), HasSubstr("cannot be met"));
  const auto plan = files.plan(text + "both}\n");
  EXPECT_LE(deviation(plan.runs[0].record.flops, 2.2e11), 5e-4);
  EXPECT_EQ(std::abs(*plan.runs[0].config.moe.expert_hidden_size - 128), 16);
}

TEST(Match, OfWidthKeepsTheSteps) {
  const SweepFiles files;
  const auto plan = files.plan("axes: {moe.top_k: [1, 4]}\nmatch: {flops: base, solve: width}\n");
  EXPECT_EQ(plan.runs[0].config.moe.expert_hidden_size, 256);
  EXPECT_EQ(plan.runs[1].config.moe.expert_hidden_size, 64);
  for (const auto& run : plan.runs) EXPECT_EQ(run.record.steps, 1000);
}

TEST(Match, SolvesNoWidthWhereEachExpertHasItsOwn) {
  const SweepFiles files;
  const std::string widths = "axes: {moe.expert_hidden_size: [[64, 64, 128, 128, 128, 128, 192, 192]]}\n";
  EXPECT_EQ(files.plan(widths + "match: {flops: base}\n").runs[0].record.steps, 1000)
      << "their mean is that of the base";
  files.write("w.yaml", "moe: {expert_hidden_size: [64, 64, 128, 128, 128, 128, 192, 208]}\n");
  const std::string included = "axes: {include: [w.yaml]}\n", said = "which gives each expert a width of its own";
  EXPECT_THAT(files.refusal(included + "match: {flops: base, solve: width}\n"), HasSubstr(said));
  EXPECT_THAT(files.refusal(included + "match: {active_params: base}\n"), HasSubstr(said));
  EXPECT_THAT(files.refusal(included + "match: {flops: 1e12, tolerance: 1e-9, solve: both}\n"),
              HasSubstr("cannot be met"));
}

TEST(Match, RefusesAxesOverWhatItSolvesAndTargetsThatAreNone) {
  const SweepFiles files;
  EXPECT_THAT(files.refusal("axes: {train.steps: [100, 200]}\nmatch: {flops: 1e13}\n"),
              HasSubstr("s.yaml:2:8: train.steps: is what match solves"));
  EXPECT_THAT(files.refusal("match: {flops: many}\n"), HasSubstr("expected a number above 0 such as 1e18, or base"));
  EXPECT_THAT(files.refusal("match: {flops: 1e13, tokens: 1e6}\n"), HasSubstr("keep one of them"));
}

}  // namespace
}  // namespace conclave::sweep
