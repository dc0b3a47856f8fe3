// SPDX-License-Identifier: Apache-2.0
#include "app/sweep_command.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "checkpoint/lock.h"
#include "core/error.h"
#include "sweep/commands.h"
#include "sweep/report.h"
#include "sweep/timing.h"

namespace conclave::app {
namespace {

namespace fs = std::filesystem;

struct SweepOptions {
  std::string file;
  std::string directory;  // empty = sweeps/NAME
  int64_t jobs = 0;       // 0 = as the file says
  bool retry = false;
  std::string emit;
  std::string launcher;
};

sweep::Folder folder_of(const SweepOptions& options, const std::string& name) {
  return sweep::Folder(options.directory.empty() ? fs::path("sweeps") / name : fs::path(options.directory));
}

// This program, and the launcher of the tree that it was built in.
sweep::Programs programs_of(const SweepOptions& options, int64_t ranks) {
  sweep::Programs programs{fs::read_symlink("/proc/self/exe"), {}};
  if (ranks == 1) return programs;
  programs.launcher = options.launcher.empty()
                          ? programs.conclave.parent_path().parent_path().parent_path().parent_path() / "launch/run"
                          : fs::absolute(options.launcher);
  if (!fs::is_regular_file(programs.launcher)) {
    throw UsageError("{} does not exist: runs of {} ranks are started by launch/run\n  Name it with --launcher.",
                     programs.launcher.string(), ranks);
  }
  return programs;
}

int plan_sweep(const SweepOptions& options) {
  const auto plan = sweep::make_plan(options.file);
  fmt::print("{}", sweep::plan_table(plan));
  for (const auto& warning : plan.warnings) fmt::print("warning: {}\n", warning);
  return 0;
}

int write_reports(const sweep::Sweep& described, const sweep::Folder& folder) {
  const auto report = sweep::make_report(described, folder);
  for (const auto& [name, text] :
       {std::pair("report.md", sweep::as_markdown(report)), std::pair("report.csv", sweep::as_csv(report)),
        std::pair("report.html", sweep::as_html(report))}) {
    checkpoint::write_file_atomically(folder.root() / name, text);
  }
  fmt::print("{}\n{}\n", sweep::as_markdown(report), (folder.root() / "report.html").string());
  return 0;
}

int run_sweep(const SweepOptions& options) {
  const auto plan = sweep::make_plan(options.file);
  const auto& config = plan.sweep.config;
  const auto folder = folder_of(options, config.name);
  const auto programs = programs_of(options, config.ranks);
  const auto at_once = static_cast<size_t>(options.jobs > 0 ? options.jobs : config.jobs);
  const auto log = make_log(0);
  sweep::block_runner_signals();
  folder.check_fits(plan);
  fs::create_directories(folder.root());
  const checkpoint::Lock lock(folder.root(), config.name, {}, *log);
  folder.write(plan);
  const auto jobs = sweep::make_jobs(plan, folder, programs);
  if (!options.emit.empty()) {
    fmt::print("{}", options.emit == "commands"
                         ? sweep::as_commands(jobs)
                         : sweep::as_slurm_array(config.name, jobs, config.ranks, static_cast<int64_t>(at_once)));
    return 0;
  }
  for (const auto& warning : plan.warnings) log->warn("{}", warning);
  log->info("{} runs in {}, {} at a time", jobs.size(), folder.root().string(), at_once);
  int code = sweep::Runner(jobs, {at_once, options.retry}, *log).run();
  if (code == static_cast<int>(ExitCode::kRequeue)) return code;
  if (const auto timing = sweep::make_timing_jobs(plan, folder, programs); !timing.empty()) {
    log->info("timing {} settings, one at a time", timing.size());
    const int timed = sweep::Runner(timing, {1, options.retry}, *log).run();
    if (timed == static_cast<int>(ExitCode::kRequeue)) return timed;
    if (code == 0) code = timed;
  }
  write_reports(plan.sweep, folder);
  return code;
}

// For verbs that look at what is there: the file's name and metric, no plan.
sweep::Sweep describe(const SweepOptions& options) {
  config::Problems problems;
  auto described = sweep::load_sweep(options.file, problems);
  problems.throw_if_any();
  return described;
}

int show_status(const SweepOptions& options) {
  const auto folder = folder_of(options, describe(options).config.name);
  fmt::print("{}", sweep::status_table(folder, folder.read_plan()));
  return 0;
}

int report_sweep(const SweepOptions& options) {
  const auto described = describe(options);
  return write_reports(described, folder_of(options, described.config.name));
}

using Verb = int (*)(const SweepOptions&);

CLI::App* add_verb(CLI::App& sweep, const char* name, const char* text, Verb verb, std::function<int()>& run) {
  const auto options = std::make_shared<SweepOptions>();
  auto* command = sweep.add_subcommand(name, text);
  command->add_option("SWEEP", options->file, "sweep file, YAML")->required();
  if (verb != plan_sweep) {
    command->add_option("--dir", options->directory, "folder of the sweep (default: sweeps/NAME)");
  }
  if (verb == run_sweep) {
    command->add_option("--jobs", options->jobs, "runs at a time (default: as the file says)")
        ->check(CLI::Range(int64_t{1}, int64_t{4096}));
    command->add_flag("--retry", options->retry, "start failed runs again");
    command
        ->add_option("--emit", options->emit,
                     "start nothing; print a command for each run, or a script for sbatch, and write the runs' files")
        ->check(CLI::IsMember({"commands", "slurm-array"}));
    command->add_option("--launcher", options->launcher, "launch/run, for runs of several ranks");
  }
  command->callback([options, verb, &run] { run = [options, verb] { return verb(*options); }; });
  return command;
}

}  // namespace

void add_sweep_command(CLI::App& app, std::function<int()>& run) {
  auto* sweep = app.add_subcommand("sweep", "many runs from one file: plan, run, compare");
  sweep->require_subcommand(1);
  add_verb(*sweep, "plan", "every run with steps, tokens and FLOPs, and every problem; starts nothing", plan_sweep,
           run);
  add_verb(*sweep, "run", "run what is not done; the same command goes on after any interruption", run_sweep, run);
  add_verb(*sweep, "status", "what is done, running, failed", show_status, run);
  add_verb(*sweep, "report", "report.md, report.csv and report.html of what is done so far", report_sweep, run);
  sweep->footer(
      "Example:\n  conclave sweep plan configs/sweeps/example.yaml\n  conclave sweep run configs/sweeps/example.yaml");
}

}  // namespace conclave::app
