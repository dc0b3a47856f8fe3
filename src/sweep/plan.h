// SPDX-License-Identifier: Apache-2.0
// A sweep worked out: every run resolved, matched, checked and named, before anything is started. Starts no rank and
// writes nothing.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "sweep/points.h"
#include "train/run_config.h"

namespace conclave::sweep {

// What plan.json keeps of a run.
struct RunRecord {
  std::string id;    // 10 hexadecimal digits, of what differs from the resolved base: stable when a sweep grows
  std::string cell;  // Point::cell()
  std::vector<std::pair<std::string, std::string>> settings;  // path and label, by axis
  int64_t seed = 0;
  int64_t steps = 0;
  int64_t tokens = 0;
  double flops = 0;  // by the counter of `match`
  int64_t parameters = 0, active = 0;
  std::string digest;  // train::config_digest
};

struct PlannedRun {
  RunRecord record;
  train::RunConfig config;  // resolved, with what `match` solved
};

struct Plan {
  Sweep sweep;
  std::vector<PlannedRun> runs;
  std::vector<std::string> warnings;  // each once
};

// Throws ConfigError with the problems of the sweep and of all its runs. Token files must exist.
Plan make_plan(const std::filesystem::path& file);

// The runs as a table, with their sums.
std::string plan_table(const Plan& plan);

}  // namespace conclave::sweep
