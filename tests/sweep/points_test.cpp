// SPDX-License-Identifier: Apache-2.0
#include "sweep/points.h"

#include "sweep/fixture.h"

namespace conclave::sweep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Points, AreTheProductInTheOrderOfTheFileWithSeedsLast) {
  const SweepFiles files;
  const auto plan = files.plan("axes: {moe.top_k: [1, 2], optim.lr: [1e-3, 2e-3]}\nseeds: [7, 3]\n");
  EXPECT_THAT(cells(plan.runs),
              ElementsAre("moe.top_k=1 optim.lr=1e-3 7", "moe.top_k=1 optim.lr=1e-3 3", "moe.top_k=1 optim.lr=2e-3 7",
                          "moe.top_k=1 optim.lr=2e-3 3", "moe.top_k=2 optim.lr=1e-3 7", "moe.top_k=2 optim.lr=1e-3 3",
                          "moe.top_k=2 optim.lr=2e-3 7", "moe.top_k=2 optim.lr=2e-3 3"));
  EXPECT_EQ(plan.runs[6].config.moe.top_k, 2);
  EXPECT_EQ(plan.runs[6].config.optim.lr, 2e-3);
  EXPECT_EQ(plan.runs[6].config.train.seed, 7);
}

TEST(Points, OfOneZipMoveTogether) {
  const SweepFiles files;
  const auto plan =
      files.plan("axes: {moe.top_k: [1, 2]}\nzip: [{moe.num_experts: [4, 16], optim.lr: [1e-3, 5e-4]}]\n");
  EXPECT_THAT(
      cells(plan.runs),
      ElementsAre("moe.top_k=1 moe.num_experts=4 optim.lr=1e-3 1", "moe.top_k=1 moe.num_experts=16 optim.lr=5e-4 1",
                  "moe.top_k=2 moe.num_experts=4 optim.lr=1e-3 1", "moe.top_k=2 moe.num_experts=16 optim.lr=5e-4 1"));
}

TEST(Points, LeaveOutWhatAgreesWithAnExclusionInAllItsKeys) {
  const SweepFiles files;
  const auto plan = files.plan(
      "axes: {moe.top_k: [1, 2], moe.router.score: [softmax, sigmoid], optim.lr: [1e-3]}\n"
      "exclude: [{moe.top_k: 1, moe.router.score: sigmoid}, {optim.lr: 0.001, moe.top_k: 2, moe.router.score: "
      "softmax}]\n");
  EXPECT_THAT(cells(plan.runs), ElementsAre("moe.top_k=1 moe.router.score=softmax optim.lr=1e-3 1",
                                            "moe.top_k=2 moe.router.score=sigmoid optim.lr=1e-3 1"));
}

TEST(Points, LayIncludedFilesOverTheBaseAndAxesOverThem) {
  const SweepFiles files;
  files.write("m/dense.yaml", "moe: {enabled: false}\noptim: {lr: 9e-4}\n");
  files.write("m/wide.yaml", "include: [half.yaml]\nmoe: {num_experts: 32}\n");
  files.write("m/half.yaml", "train: {steps: 500}\n");
  const auto plan = files.plan("axes: {optim.lr: [5e-4], include: [m/dense.yaml, m/wide.yaml]}\n");
  EXPECT_THAT(cells(plan.runs), ElementsAre("optim.lr=5e-4 dense 1", "optim.lr=5e-4 wide 1"));
  EXPECT_FALSE(plan.runs[0].config.moe.enabled);
  EXPECT_EQ(plan.runs[0].config.optim.lr, 5e-4);
  EXPECT_EQ(std::get<int64_t>(plan.runs[1].config.moe.num_experts), 32);
  EXPECT_EQ(plan.runs[1].config.train.steps, 500);
  EXPECT_EQ(plan.runs[1].config.moe.top_k, 2) << "the base's";
}

TEST(Points, MayBeValuesOfAnyKindAndItemsOfLists) {
  const SweepFiles files;
  const auto plan = files.plan(
      "axes: {optim.betas: [[0.9, 0.95], [0.8, 0.9]], 'data.train[0].weight': [2]}\n"
      "exclude: [{optim.betas: [0.9, 0.95]}]\n");
  ASSERT_EQ(plan.runs.size(), 1);
  EXPECT_EQ(plan.runs[0].config.optim.betas[0], 0.8);
  EXPECT_EQ(plan.runs[0].config.data.train[0].weight, 2);
  EXPECT_EQ(plan.runs[0].record.cell, "optim.betas=[0.8,0.9] data.train[0].weight=2");
}

TEST(Points, ThatCannotBeReadAreNamedWithTheirPlace) {
  const SweepFiles files;
  const auto said = [&](const std::string& text) { return files.refusal(text); };
  EXPECT_THAT(said("axes: {moe.topk: [1]}\n"), HasSubstr("s.yaml:2:8: moe.topk: unknown key; what other stacks call"));
  EXPECT_THAT(said("axes: {optim.lrr: [1]}\n"), HasSubstr("did you mean lr?"));
  EXPECT_THAT(said("axes: {optin.lr: [1]}\n"), HasSubstr("did you mean optim.lr?"));
  EXPECT_THAT(said("axes: {train.seed: [1, 2]}\n"), HasSubstr("list the seeds under seeds:"));
  EXPECT_THAT(said("axes: {optim.lr: []}\n"), HasSubstr("s.yaml:2:18: optim.lr: an axis without values"));
  EXPECT_THAT(said("axes: {optim.lr: 1e-3}\n"), HasSubstr("expected a list of values, found '1e-3'"));
  EXPECT_THAT(said("axes: {optim.lr: [1e-3]}\nzip: [{optim.lr: [1]}]\n"), HasSubstr("varies already on another axis"));
  EXPECT_THAT(said("zip: [{optim.lr: [1, 2], moe.top_k: [1]}]\n"),
              HasSubstr("1 values, but the others of this zip have 2"));
  EXPECT_THAT(said("axes: {include: [gone.yaml]}\n"), HasSubstr("there is no file gone.yaml"));
}

TEST(Points, OfEverySweepOfTheRepositoryAreWithoutProblems) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(CONCLAVE_SOURCE_DIR "/configs/sweeps")) {
    config::Problems problems;
    const Sweep sweep = load_sweep(entry.path(), problems);
    EXPECT_GT(make_points(sweep, problems).size(), 1) << entry.path();
    EXPECT_EQ(problems.count(), 0) << problems.report();
    EXPECT_TRUE(sweep.text.starts_with("# ")) << entry.path() << " needs an opening comment";
    EXPECT_TRUE(std::filesystem::exists(sweep.directory() / sweep.config.base)) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 1);
}

TEST(Points, ExclusionsAndBaselinesThatFitNothingAreProblems) {
  const SweepFiles files;
  const std::string axes = "axes: {moe.top_k: [1, 2], optim.lr: [1e-3, 2e-3]}\n";
  const auto said = [&](const std::string& text) { return files.refusal(axes + text); };
  EXPECT_THAT(said("exclude: [{moe.topk: 1}]\n"),
              HasSubstr("'moe.topk' does not vary in this sweep (did you mean moe.top_k?)"));
  EXPECT_THAT(said("exclude: [{moe.top_k: 3}]\n"), HasSubstr("moe.top_k never is '3'"));
  EXPECT_THAT(said("exclude: [{moe.top_k: 1}, {moe.top_k: 1, optim.lr: 1e-3}]\n"), HasSubstr("leaves nothing out"));
  EXPECT_THAT(said("exclude: [{moe.top_k: 1}, {moe.top_k: 2}]\n"), HasSubstr("leaves no run"));
  EXPECT_THAT(said("baseline: {moe.top_k: 4}\n"), HasSubstr("baseline: moe.top_k never is '4'"));
}

}  // namespace
}  // namespace conclave::sweep
