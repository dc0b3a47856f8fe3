// SPDX-License-Identifier: Apache-2.0
#include "sweep/report.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "sweep/points.h"

namespace conclave::sweep {
namespace {

// A number may be written in two ways, and the name of a file is more than its label.
bool same(const std::string& path, const std::string& label, const config::Node& value) {
  const bool equal = value.is_scalar() && agrees({path, config::scalar_node(label), label}, value);
  return equal || label_of(path, value) == label;
}

// The cell that `cell` is compared with: the baseline's values where it names them, its own elsewhere.
const CellReport* baseline_of(const CellReport& cell, const std::vector<CellReport>& cells,
                              const config::Node& baseline) {
  for (const CellReport& other : cells) {
    const bool fits =
        std::equal(cell.settings.begin(), cell.settings.end(), other.settings.begin(), other.settings.end(),
                   [&](const auto& mine, const auto& theirs) {
                     const config::Node* value = baseline.get(theirs.first);
                     return value != nullptr ? same(theirs.first, theirs.second, *value) : mine.second == theirs.second;
                   });
    if (fits) return &other;
  }
  return nullptr;
}

// Pairs of runs with one seed that are both done.
Difference difference(const CellReport& cell, const CellReport& baseline) {
  std::vector<double> mine, theirs;
  for (const RunResult& run : cell.runs) {
    for (const RunResult& other : baseline.runs) {
      if (run.record.seed != other.record.seed || !run.metric || !other.metric) continue;
      mine.push_back(*run.metric);
      theirs.push_back(*other.metric);
    }
  }
  return paired_difference(mine, theirs);
}

Summary over_runs(const CellReport& cell, const auto& value) {
  std::vector<double> values;
  for (const RunResult& run : cell.runs) {
    if (run.metric) values.push_back(value(run));
  }
  return summarise(values);
}

void summarise_cell(CellReport& cell) {
  cell.metric = over_runs(cell, [](const RunResult& run) { return *run.metric; });
  cell.seconds = over_runs(cell, [](const RunResult& run) { return run.seconds; });
  cell.imbalance = over_runs(cell, [](const RunResult& run) { return run.imbalance; });
  cell.dropped = over_runs(cell, [](const RunResult& run) { return run.dropped; });
  cell.dead = over_runs(cell, [](const RunResult& run) { return run.dead; });
  for (const RunResult& run : cell.runs) {
    if (run.step_seconds) cell.step_seconds = run.step_seconds;
  }
}

std::vector<CellReport> cells_of(std::vector<RunResult> results) {
  std::vector<CellReport> cells;
  std::map<std::string, size_t> numbers;
  for (RunResult& result : results) {
    const auto [place, fresh] = numbers.emplace(result.record.cell, cells.size());
    if (fresh) {
      cells.emplace_back();
      cells.back().cell = result.record.cell;
      cells.back().settings = result.record.settings;
    }
    cells[place->second].runs.push_back(std::move(result));
  }
  for (CellReport& cell : cells) summarise_cell(cell);
  return cells;
}

void compare(std::vector<CellReport>& cells, const config::Node& baseline) {
  if (!baseline.is_map()) return;
  for (CellReport& cell : cells) {
    const CellReport* other = baseline_of(cell, cells, baseline);
    cell.baseline = other == &cell;
    if (other == nullptr || cell.baseline) continue;
    cell.to_baseline = difference(cell, *other);
    if (cell.step_seconds && other->step_seconds) cell.relative_time = *cell.step_seconds / *other->step_seconds;
  }
}

std::vector<Effect> effects_of(const std::vector<CellReport>& cells) {
  std::vector<Effect> effects;
  double sum = 0, count = 0;
  for (const CellReport& cell : cells) {
    if (cell.metric.count == 0) continue;
    sum += cell.metric.mean;
    ++count;
    for (const auto& [path, label] : cell.settings) {
      const auto known = std::find_if(effects.begin(), effects.end(), [&, p = path, l = label](const Effect& effect) {
        return effect.path == p && effect.label == l;
      });
      Effect& effect = known != effects.end() ? *known : effects.emplace_back(Effect{path, label});
      ++effect.cells;
      effect.mean += cell.metric.mean;
    }
  }
  for (Effect& effect : effects) {
    effect.mean /= static_cast<double>(effect.cells);
    effect.effect = effect.mean - sum / count;
  }
  // One value says nothing.
  std::map<std::string, int> values;
  for (const Effect& effect : effects) ++values[effect.path];
  std::erase_if(effects, [&](const Effect& effect) { return values[effect.path] < 2; });
  std::stable_sort(effects.begin(), effects.end(), [](const Effect& a, const Effect& b) { return a.path < b.path; });
  return effects;
}

}  // namespace

bool Report::has_baseline() const {
  return std::any_of(cells.begin(), cells.end(), [](const CellReport& cell) { return cell.baseline; });
}

bool Report::has_times() const {
  return std::any_of(cells.begin(), cells.end(), [](const CellReport& cell) { return cell.step_seconds.has_value(); });
}

Report make_report(const Sweep& sweep, const Folder& folder) {
  Report report;
  report.name = sweep.config.name;
  report.metric = sweep.config.metric;
  std::vector<RunResult> results;
  for (const RunRecord& record : folder.read_plan()) {
    results.push_back(read_result(folder, record, report.metric.name));
    const RunResult& run = results.back();
    ++report.runs;
    report.failed += run.status.state == State::kFailed ? 1 : 0;
    if (!run.metric) continue;
    ++report.done;
    report.flops += record.flops;
    report.seconds += run.seconds;
  }
  report.cells = cells_of(std::move(results));
  compare(report.cells, sweep.baseline);
  report.effects = effects_of(report.cells);
  const double sign = report.metric.goal == Goal::kMin ? 1 : -1;
  std::stable_sort(report.cells.begin(), report.cells.end(), [&](const CellReport& a, const CellReport& b) {
    if ((a.metric.count == 0) != (b.metric.count == 0)) return b.metric.count == 0;
    return sign * a.metric.mean < sign * b.metric.mean;
  });
  return report;
}

}  // namespace conclave::sweep
