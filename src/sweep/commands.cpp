// SPDX-License-Identifier: Apache-2.0
#include "sweep/commands.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave::sweep {
namespace {

// A word of a shell command.
std::string quoted(const std::string& word) {
  const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || std::string_view("/._-=+:,").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return word;
  std::string text = "'";
  for (const char c : word) c == '\'' ? text += "'\\''" : text += c;
  return text + "'";
}

std::string line_of(const Job& job) {
  std::vector<std::string> words;
  for (const std::string& word : job.command) words.push_back(quoted(word));
  return fmt::format("{}", fmt::join(words, " "));
}

}  // namespace

std::vector<std::string> train_command(const Programs& programs, int64_t ranks, const std::filesystem::path& config,
                                       const std::filesystem::path& run) {
  if (ranks == 1) return {programs.conclave.string(), "train", config.string(), "--run", run.string()};
  return {programs.launcher.string(),
          "--binary",
          programs.conclave.string(),
          std::to_string(ranks),
          config.string(),
          "--run",
          run.string()};
}

std::vector<Job> make_jobs(const Plan& plan, const Folder& folder, const Programs& programs) {
  std::vector<Job> jobs;
  for (const auto& [record, config] : plan.runs) {
    const auto& id = record.id;
    jobs.push_back({id, fmt::format("{} seed {}", record.cell, record.seed),
                    train_command(programs, plan.sweep.config.ranks, folder.config(id), folder.run(id)), folder.job(id),
                    folder.run(id), record.digest, record.steps});
  }
  return jobs;
}

std::string as_commands(const std::vector<Job>& jobs) {
  std::string text;
  for (const Job& job : jobs) text += line_of(job) + "\n";
  return text;
}

std::string as_slurm_array(const std::string& name, const std::vector<Job>& jobs, int64_t ranks, int64_t at_once) {
  std::string text = fmt::format(
      "#!/usr/bin/env bash\n"
      "#SBATCH --job-name={}\n#SBATCH --array=1-{}%{}\n#SBATCH --ntasks={}\n"
      "#SBATCH --requeue\n#SBATCH --open-mode=append\n"
      "# Five minutes before the time is over, SIGUSR1 asks the run to save and to end with 75.\n"
      "#SBATCH --signal=B:USR1@300\n",
      name, jobs.size(), at_once, ranks);
  text += "# Add what your cluster wants: --partition, --time, --cpus-per-task, --account.\nruns=(\n";
  for (const Job& job : jobs) text += fmt::format("  {}  # {}\n", quoted(line_of(job)), job.label);
  text +=
      ")\n"
      "eval \"exec ${runs[SLURM_ARRAY_TASK_ID - 1]}\" &\n"
      "run=$!\n"
      "trap 'kill -USR1 \"$run\"' USR1 TERM\n"
      "code=0\n"
      "wait \"$run\" || code=$?\n"
      "while kill -0 \"$run\" 2>/dev/null; do code=0; wait \"$run\" || code=$?; done  # a trap ends wait early\n"
      "if [ \"$code\" -eq 75 ]; then scontrol requeue \"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\"; fi\n"
      "exit \"$code\"\n";
  return text;
}

}  // namespace conclave::sweep
