// SPDX-License-Identifier: Apache-2.0
#include "sweep/report.h"

#include <fmt/format.h>

#include <fstream>

#include "sweep/commands.h"
#include "sweep/fixture.h"

namespace conclave::sweep {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kSweep =
    "axes: {moe.top_k: [1, 2], optim.lr: [1e-3, 2e-3]}\nseeds: [1, 2, 3]\nbaseline: {moe.top_k: 2}\n"
    "match: {flops: 1e13}\nname: made-up\n";

// Runs with the losses that a test wants: `loss` of cell and seed; none = not done.
class SweepReportTest : public testing::Test {
 protected:
  void finish(const PlannedRun& run, double loss) const {
    const auto where = folder_.run(run.record.id);
    std::filesystem::create_directories(where);
    std::ofstream(where / "result.json") << fmt::format(
        R"({{"config_digest": "{}", "step": {}, "peak_bytes": 5, "evaluation": [)"
        R"({{"source": "v", "loss": {}, "tokens": 30}}, {{"source": "w", "loss": {}, "tokens": 10}}]}})",
        run.record.digest, run.record.steps, loss - 0.1, loss + 0.3);
    std::ofstream metrics(where / "metrics.jsonl");
    for (int step = 1; step <= 20; ++step) {
      metrics << fmt::format(R"({{"step": {}, "loss": {}, "grad_norm": 1, "step_seconds": 0.5, "moe": [)"
                             R"({{"max_over_mean": 1.5, "dropped": 0.25, "dead": 1}},)"
                             R"({{"max_over_mean": 2.5, "dropped": 0.75, "dead": 0}}]}})"
                             "\n",
                             step, 5 - 0.1 * step);
    }
    metrics << R"({"step": 20, "eval": "v", "loss": 1})"
            << "\n"
            << R"({"step": 21, "lo)";
  }

  SweepFiles files_;
  Plan plan_ = files_.plan(kSweep);
  Folder folder_{files_.directory() / "made-up"};
};

TEST_F(SweepReportTest, PairsEverySettingWithTheBaselineOfItsOwnKindBySeed) {
  folder_.write(plan_);
  for (const auto& run : plan_.runs) {
    const double lr = run.config.optim.lr, seed = static_cast<double>(run.record.seed);
    finish(run, (lr > 1.5e-3 ? 3 : 2) + 10 * seed + (run.config.moe.top_k == 1 ? 0.01 * seed : 0));
  }
  const Report report = make_report(plan_.sweep, folder_);
  EXPECT_EQ(report.done, 12);
  ASSERT_EQ(report.cells.size(), 4);
  for (const auto& cell : report.cells) {
    EXPECT_NEAR(cell.metric.error, 10 / std::sqrt(3), 0.01);
    EXPECT_EQ(cell.baseline, cell.cell.starts_with("moe.top_k=2"));
    EXPECT_EQ(cell.to_baseline.has_value(), !cell.baseline);
    if (cell.baseline) continue;
    // The seeds' own differences of 10 are gone: 0.01, 0.02, 0.03 are left.
    EXPECT_NEAR(cell.to_baseline->mean, 0.02, 1e-9);
    EXPECT_NEAR(cell.to_baseline->high, 0.02 + 4.3027 * 0.01 / std::sqrt(3), 1e-5);
  }
  EXPECT_EQ(report.cells.front().cell, "moe.top_k=2 optim.lr=1e-3") << "the best first";
  ASSERT_EQ(report.effects.size(), 4);
  EXPECT_NEAR(report.effects[3].effect, 0.5, 1e-9) << "lr 2e-3 costs half a nat beside the mean";
}

TEST_F(SweepReportTest, AFileMayBeTheBaseline) {
  files_.write("m/one.yaml", "moe: {top_k: 1}\n");
  files_.write("m/two.yaml", "moe: {top_k: 2}\n");
  const Plan plan = files_.plan(
      "axes: {include: [m/one.yaml, m/two.yaml]}\nseeds: [1, 2]\nbaseline: {include: m/one.yaml}\nname: made-up\n");
  folder_.write(plan);
  for (const auto& run : plan.runs) finish(run, run.config.moe.top_k == 1 ? 3 : 2);
  const Report report = make_report(plan.sweep, folder_);
  ASSERT_EQ(report.cells.size(), 2);
  EXPECT_TRUE(report.cells[1].baseline) << report.cells[1].cell;
  ASSERT_TRUE(report.cells[0].to_baseline.has_value());
  EXPECT_NEAR(report.cells[0].to_baseline->mean, -1, 1e-9);
}

TEST_F(SweepReportTest, IsWrittenAsMarkdownAndCsvAndHtml) {
  folder_.write(plan_);
  for (const auto& run : plan_.runs) {
    if (run.record.seed < 3 && run.config.moe.top_k == 2) finish(run, run.config.optim.lr > 1.5e-3 ? 3 : 2);
  }
  record_end(folder_.journal(plan_.runs.front().record.id), {81, 0, "nan"});
  const Report report = make_report(plan_.sweep, folder_);
  const auto steps = plan_.runs.back().record.steps;
  EXPECT_THAT(as_markdown(report), HasSubstr("4 of 12 runs done, 1 failed"));
  EXPECT_THAT(as_markdown(report),
              HasSubstr(fmt::format("| moe.top_k=2 optim.lr=1e-3 | 2.0000 ± 0.0000 | baseline | 2/3 | {} |", steps)));
  EXPECT_THAT(as_markdown(report), HasSubstr("| 2.00 | 50.00% | 0.50 | 10.0 |")) << "means over layers, sum of seconds";
  EXPECT_THAT(as_markdown(report), HasSubstr("| moe.top_k=1 optim.lr=1e-3 | failed | – | 0/3 |"));
  const std::string csv = as_csv(report);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 12);
  EXPECT_THAT(csv, HasSubstr("id,cell,moe.top_k,optim.lr,seed,state,metric,"));
  EXPECT_THAT(csv, HasSubstr("moe.top_k=2 optim.lr=2e-3,2,2e-3,1,done,3,"));
  const std::string html = as_html(report);
  EXPECT_THAT(html, HasSubstr("<polyline points=\""));
  EXPECT_THAT(html, Not(HasSubstr("nan"))) << "no coordinate is none";
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("http"))) << "nothing is fetched";
}

TEST_F(SweepReportTest, KnowsTheMetricsThereAreAndNamesThem) {
  folder_.write(plan_);
  finish(plan_.runs[0], 2);
  const auto metric = [&](const std::string& name) {
    Sweep sweep = plan_.sweep;
    sweep.config.metric.name = name;
    return make_report(sweep, folder_).cells.front().metric.mean;
  };
  EXPECT_NEAR(metric("eval/loss"), 0.75 * 1.9 + 0.25 * 2.3, 1e-9) << "by targets";
  EXPECT_NEAR(metric("eval/w/loss"), 2.3, 1e-9);
  EXPECT_NEAR(metric("train/loss"), (3.1 + 3.0) / 2, 1e-9) << "the last tenth";
  EXPECT_THAT(config_error([&] { metric("eval/x/loss"); }),
              HasSubstr("they have: train/loss, eval/v/loss, eval/w/loss, eval/loss"));
}

TEST_F(SweepReportTest, FolderRefusesAnotherSweepButTakesMoreRuns) {
  folder_.write(plan_);
  folder_.check_fits(plan_);
  folder_.check_fits(files_.plan(std::string(kSweep) + "zip: [{moe.num_experts: [8, 4]}]\n"));
  EXPECT_THAT(
      config_error([&] { folder_.check_fits(files_.plan("axes: {moe.top_k: [1, 2]}\nmatch: {flops: 1e13}\n")); }),
      HasSubstr("runs that the sweep no longer has:"));
  files_.write("base.yaml", std::string(SweepFiles::kBase) + "eval: {batches: 3}\n");
  EXPECT_THAT(config_error([&] { folder_.check_fits(files_.plan(kSweep)); }), HasSubstr("the base has changed"));
}

TEST_F(SweepReportTest, StatusIsReadFromFilesAlone) {
  folder_.write(plan_);
  finish(plan_.runs[0], 2);
  const auto journal = [&](int run) { return folder_.journal(plan_.runs[run].record.id); };
  record_start(journal(1), ::getpid(), 1);
  record_end(journal(2), {81, 0, ""});
  record_start(journal(3), 1, 1);
  record_end(journal(3), {75, 0, ""});
  const auto state = [&](int run) { return status_of(folder_, plan_.runs[run].record).state; };
  EXPECT_EQ(state(0), State::kDone);
  EXPECT_EQ(state(1), State::kBegun) << "the process of that number is another";
  EXPECT_EQ(state(2), State::kFailed);
  EXPECT_EQ(state(4), State::kWaiting);
  EXPECT_THAT(status_table(folder_, folder_.read_plan()), HasSubstr("12 runs, 8 waiting, 2 begun, 1 failed, 1 done"));
}

TEST_F(SweepReportTest, CommandsAndTheSlurmScriptAreShell) {
  folder_.write(plan_);
  auto jobs = make_jobs(plan_, folder_, {"/opt/con clave", "/opt/launch/run"});
  EXPECT_THAT(as_commands(jobs), HasSubstr("'/opt/con clave' train "));
  const std::string mark = (files_.directory() / "it's done").string();
  jobs[1].command = {"/usr/bin/touch", mark};
  const auto script = files_.write("array.sh", as_slurm_array("made-up", jobs, 1, 4));
  EXPECT_THAT(as_slurm_array("made-up", jobs, 1, 4), HasSubstr("#SBATCH --array=1-12%4\n"));
  EXPECT_EQ(std::system(("SLURM_ARRAY_TASK_ID=2 bash '" + script.string() + "'").c_str()), 0);
  EXPECT_TRUE(std::filesystem::exists(mark));
}

}  // namespace
}  // namespace conclave::sweep
