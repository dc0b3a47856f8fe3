// SPDX-License-Identifier: Apache-2.0
#include "sweep/timing.h"

#include <fmt/format.h>

#include <set>

#include "checkpoint/file.h"
#include "train/run_result.h"

namespace conclave::sweep {
namespace {

train::RunConfig for_timing(const train::RunConfig& config, int64_t steps) {
  train::RunConfig timed = config;
  timed.train.steps = steps;
  timed.train.profile.reset();
  timed.train.max_time.reset();
  timed.optim.warmup = {};
  timed.optim.decay.reset();
  timed.data.valid.clear();
  timed.checkpoint.every = steps;
  return timed;
}

}  // namespace

std::vector<Job> make_timing_jobs(const Plan& plan, const Folder& folder, const Programs& programs) {
  const int64_t steps = plan.sweep.config.timing.steps;
  std::vector<Job> jobs;
  if (steps == 0) return jobs;
  std::set<std::string> cells;
  for (const auto& [record, config] : plan.runs) {
    if (!cells.insert(record.cell).second) continue;
    const auto timed = for_timing(config, steps);
    const auto where = folder.job(record.id) / "timing-job";
    std::filesystem::create_directories(where);
    checkpoint::write_file_atomically(where / "config.yaml", train::to_yaml(timed));
    jobs.push_back({record.id, fmt::format("timing of {}", record.cell),
                    train_command(programs, plan.sweep.config.ranks, where / "config.yaml", folder.timing(record.id)),
                    where, folder.timing(record.id), train::config_digest(timed), steps});
  }
  return jobs;
}

}  // namespace conclave::sweep
