// SPDX-License-Identifier: Apache-2.0
// A sweep compared: means over seeds, differences to a baseline, effects of axes, cost. make_report() computes; the
// writers only put it into a form.
#pragma once

#include <string>
#include <vector>

#include "sweep/results.h"
#include "sweep/statistics.h"
#include "sweep/sweep_config.h"

namespace conclave::sweep {

// The runs that differ by seed only.
struct CellReport {
  std::string cell;
  std::vector<std::pair<std::string, std::string>> settings;
  std::vector<RunResult> runs;
  Summary metric;                         // over the runs that are done
  std::optional<Difference> to_baseline;  // paired by seed; none without a baseline, and for the baseline itself
  bool baseline = false;
  Summary seconds, imbalance, dropped, dead;
  std::optional<double> step_seconds, relative_time;  // measured alone; over the baseline's
};

// What a value of an axis comes with, all else averaged.
struct Effect {
  std::string path, label;
  size_t cells = 0;
  double mean = 0;    // of the cells' means
  double effect = 0;  // minus the mean over all cells
};

struct Report {
  std::string name;
  MetricConfig metric;
  std::vector<CellReport> cells;  // the best first, those without a result last
  std::vector<Effect> effects;    // of axes with more than one value
  size_t runs = 0, done = 0, failed = 0;
  double flops = 0, seconds = 0;  // of the runs that are done

  bool has_baseline() const;
  bool has_times() const;
};

// Reads every run of the folder's plan.
Report make_report(const Sweep& sweep, const Folder& folder);

std::string as_markdown(const Report& report);
// A row for each run.
std::string as_csv(const Report& report);
// One file that needs nothing else: curves as SVG, no script.
std::string as_html(const Report& report);

}  // namespace conclave::sweep
