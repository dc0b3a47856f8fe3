// SPDX-License-Identifier: Apache-2.0
#include "sweep/plan.h"

#include <chrono>
#include <fstream>
#include <set>

#include "sweep/fixture.h"

namespace conclave::sweep {
namespace {

using testing::HasSubstr;

std::set<std::string> ids(const Plan& plan) {
  std::set<std::string> result;
  for (const auto& run : plan.runs) result.insert(run.record.id);
  return result;
}

TEST(SweepPlan, IsATableOfAllRunsAndTheirSums) {
  const SweepFiles files;
  EXPECT_EQ(plan_table(files.plan("axes: {moe.top_k: [1, 2]}\nseeds: [1, 2]\n")),
            "id          runs           seed    steps     tokens      FLOPs     active\n"
            "16ae2d7154  moe.top_k=1       1     1000   5.12e+05 4.0265e+11  1.475e+05\n"
            "f3bdc92f2d  moe.top_k=1       2     1000   5.12e+05 4.0265e+11  1.475e+05\n"
            "dc7048f8f8  moe.top_k=2       1     1000   5.12e+05 5.5365e+11  1.966e+05\n"
            "334467aaf7  moe.top_k=2       2     1000   5.12e+05 5.5365e+11  1.966e+05\n"
            "4 runs, 2.048e+06 tokens, 1.9126e+12 FLOPs\n");
}

TEST(SweepPlan, KeepsTheNamesOfRunsWhenASweepGrows) {
  const SweepFiles files;
  const auto before = ids(files.plan("axes: {moe.top_k: [1, 2]}\nseeds: [1, 2]\n"));
  // 8 experts and lr 1e-3 are the base's values.
  const auto after = ids(
      files.plan("axes: {optim.lr: [3e-3, 0.001], moe.num_experts: [8, 16], moe.top_k: [2, 1]}\nseeds: [2, 1, 3]\n"));
  EXPECT_EQ(before.size(), 4);
  EXPECT_EQ(after.size(), 2 * 2 * 2 * 3);
  EXPECT_TRUE(std::includes(after.begin(), after.end(), before.begin(), before.end()));
}

TEST(SweepPlan, DigestsOnlyWhatDecidesWhatIsLearned) {
  const SweepFiles files;
  const auto digest = [&] { return files.plan("axes: {moe.top_k: [1]}\n").runs[0].record.digest; };
  const auto before = digest();
  files.write("base.yaml", std::string(SweepFiles::kBase) +
                               "checkpoint: {every: 7}\nmetrics: {every: 3}\nmemory: {recompute: full}\n");
  EXPECT_EQ(digest(), before);
  files.write("base.yaml", std::string(SweepFiles::kBase) + "moe.router: {score: sigmoid}\n");
  EXPECT_THAT(files.refusal(""), HasSubstr("in the base configuration base.yaml"));
  files.write("base.yaml", std::string(SweepFiles::kBase) + "eval: {batches: 3}\n");
  EXPECT_NE(digest(), before);
}

TEST(SweepPlan, RefusesABadSweepWithAllItsProblems) {
  const SweepFiles files;
  const auto said = files.refusal(
      "axes:\n  moe.topk: [1]\n  moe.top_k: [1, 9]\n  optim.warmup: [1%, 2000]\n  parallel.ep: [1, 3]\n"
      "seeds: [1, 1]\nmatch: {flops: 1e9}\nbaselin: {}\njobs: 0\n");
  EXPECT_THAT(said, HasSubstr("nothing was started"));
  EXPECT_THAT(said, HasSubstr("s.yaml:3:3: moe.topk: unknown key"));
  EXPECT_THAT(said, HasSubstr("s.yaml:4:18: moe.top_k: 9 experts for each token, but a layer has only 8"));
  EXPECT_THAT(said, HasSubstr("s.yaml:5:22: optim.warmup: warm-up of 2000 steps in a run of 1000"));
  EXPECT_THAT(said, HasSubstr("s.yaml:6:20: parallel.ep: "));
  EXPECT_THAT(said, HasSubstr("s.yaml:7:12: seeds[1]: seed 1 is given twice"));
  EXPECT_THAT(said, HasSubstr("s.yaml:8:16: match.flops: 1e+09 cannot be met"));
  EXPECT_THAT(said, HasSubstr("s.yaml:9:1: baselin: unknown key (did you mean baseline?)"));
  EXPECT_THAT(said, HasSubstr("s.yaml:10:7: jobs: must be at least 1"));
  EXPECT_EQ(said.find("9 experts for each token"), said.rfind("9 experts for each token")) << "each problem once";
}

TEST(SweepPlan, RefusesEqualRunsMissingDataAndNamesThatAreNoFolder) {
  const SweepFiles files;
  EXPECT_THAT(files.refusal("axes: {optim.lr: [1e-3, 0.001]}\n"), HasSubstr("are the same run"));
  EXPECT_THAT(files.refusal("axes: {'data.train[0].path': [t, gone]}\n"),
              HasSubstr("in data.train[0].path=gone:\ns.yaml:2:34: "));
  EXPECT_THAT(files.refusal("name: a/b\n"), HasSubstr("'a/b' names a folder"));
  EXPECT_THAT(config_error([&] { make_plan(files.write("e.yaml", "base: gone.yaml\n")); }),
              HasSubstr("there is no file"));
  EXPECT_THAT(config_error([&] { make_plan(files.write("e.yaml", "seeds: [1]\n")); }),
              HasSubstr("base: required, but not given"));
}

TEST(SweepPlan, HasEveryKeyOnItsPage) {
  std::ifstream file(std::string(CONCLAVE_SOURCE_DIR) + "/docs/sweeps.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  auto keys = config::leaf_paths(sweep_schema());
  EXPECT_GT(keys.size(), 12);
  for (const char* free : {"axes", "zip", "exclude", "baseline"}) keys.emplace_back(free);
  for (const std::string& key : keys) EXPECT_THAT(page, HasSubstr("| `" + key + "` |"));
}

TEST(SweepPlan, TakesTwoHundredRunsInSeconds) {
  const SweepFiles files;
  const auto start = std::chrono::steady_clock::now();
  const auto plan = files.plan(
      "axes: {moe.top_k: [1, 2], moe.num_experts: [8, 16], optim.lr: [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]}\n"
      "seeds: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\nmatch: {flops: 1e13}\n");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(plan.runs.size(), 200);
  EXPECT_LT(took.count(), 5);
  RecordProperty("seconds", std::to_string(took.count()));
}

}  // namespace
}  // namespace conclave::sweep
