// SPDX-License-Identifier: Apache-2.0
// What a run came to, read from its directory: result.json for what is final, metrics.jsonl for the way there.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sweep/folder.h"

namespace conclave::sweep {

struct RunResult {
  RunRecord record;
  RunStatus status;
  std::optional<double> metric;                             // of runs that are done
  std::vector<std::pair<std::string, double>> evaluations;  // final loss of each validation source
  std::vector<double> losses;                               // training loss by step
  // Means over the last tenth of the steps and all MoE layers.
  double imbalance = 0;  // load of the busiest expert over the mean
  double dropped = 0;    // share of the choices
  double dead = 0;       // experts of a layer without a token in a step
  double seconds = 0;    // of all steps, as conducted: other runs had their share of the machine
  double peak_bytes = 0;
  std::optional<double> step_seconds;  // measured alone
};

// `metric` as in MetricConfig::name. Throws ConfigError naming what there is when a finished run has no such metric.
RunResult read_result(const Folder& folder, const RunRecord& record, const std::string& metric);

// The first of the last tenth of `steps` steps, counted from 0: where final means begin.
size_t tail_begin(size_t steps);

// Median time of a step in the metrics of a timing run, its first two steps left out; none when there are too few.
std::optional<double> median_step_seconds(const std::filesystem::path& metrics);

}  // namespace conclave::sweep
