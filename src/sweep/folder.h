// SPDX-License-Identifier: Apache-2.0
// The folder of a sweep: its plan, and for each run a run directory (runs/ID, which belongs to `conclave train`) and
// what conducting it needs (jobs/ID). Whether a run is done is decided here, from files alone.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "sweep/journal.h"
#include "sweep/plan.h"

namespace conclave::sweep {

class Folder {
 public:
  explicit Folder(const std::filesystem::path& root) : root_(std::filesystem::absolute(root).lexically_normal()) {}

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path run(const std::string& id) const { return root_ / "runs" / id; }
  std::filesystem::path job(const std::string& id) const { return root_ / "jobs" / id; }
  std::filesystem::path config(const std::string& id) const { return job(id) / "config.yaml"; }
  // Directory of the run that measures time per step.
  std::filesystem::path timing(const std::string& id) const { return job(id) / "timing"; }
  std::filesystem::path journal(const std::string& id) const { return job(id) / "journal.jsonl"; }

  // Throws ConfigError when the folder holds another sweep: runs that the plan no longer has, or that would now compute
  // something else. Runs may be added.
  void check_fits(const Plan& plan) const;
  // sweep.yaml, plan.json and the configuration of each run.
  void write(const Plan& plan) const;
  // The runs of plan.json, in its order. Throws UsageError when there is none.
  std::vector<RunRecord> read_plan() const;

 private:
  std::filesystem::path root_;
};

// What training and conducting left of a run. kBegun: some of it is done, and no process that was started from this
// folder works on it; it was stopped or killed, or runs elsewhere.
enum class State { kWaiting, kRunning, kBegun, kFailed, kDone };
std::string_view state_name(State state);

struct RunStatus {
  State state = State::kWaiting;
  int64_t step = 0;  // of the last line of metrics.jsonl
  History history;
};

// Whether the run directory holds the result of exactly this run.
bool is_done(const std::filesystem::path& run, const std::string& digest, int64_t steps);
RunStatus status_of(const Folder& folder, const RunRecord& record);

// A line for each run, the counts of states first.
std::string status_table(const Folder& folder, const std::vector<RunRecord>& records);

}  // namespace conclave::sweep
