// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "sweep/report.h"

namespace conclave::sweep {
namespace {

using Row = std::vector<std::string>;

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) c == '|' ? result += "\\|" : result += c;
  return result;
}

std::string markdown_table(const Row& head, const std::vector<Row>& rows) {
  std::string text = fmt::format("| {} |\n|", fmt::join(head, " | "));
  for (size_t i = 0; i < head.size(); ++i) text += i == 0 ? "---|" : "---:|";
  text += "\n";
  for (const Row& row : rows) text += fmt::format("| {} |\n", fmt::join(row, " | "));
  return text;
}

std::string difference_text(const CellReport& cell) {
  if (cell.baseline) return "baseline";
  if (!cell.to_baseline || cell.to_baseline->pairs == 0) return "–";
  const Difference& d = *cell.to_baseline;
  if (!d.has_interval()) return fmt::format("{:+.4f}", d.mean);
  return fmt::format("{:+.4f} [{:+.4f}, {:+.4f}]", d.mean, d.low, d.high);
}

std::string state_text(const CellReport& cell) {
  for (const RunResult& run : cell.runs) {
    if (run.status.state == State::kFailed) return "failed";
  }
  return "–";
}

Row cell_row(const Report& report, const CellReport& cell) {
  const RunRecord& record = cell.runs.front().record;
  Row row{escaped(cell.cell)};
  if (cell.metric.count == 0) {
    row.push_back(state_text(cell));
  } else {
    row.push_back(cell.metric.count == 1 ? fmt::format("{:.4f}", cell.metric.mean)
                                         : fmt::format("{:.4f} ± {:.4f}", cell.metric.mean, cell.metric.error));
  }
  if (report.has_baseline()) row.push_back(difference_text(cell));
  row.push_back(fmt::format("{}/{}", cell.metric.count, cell.runs.size()));
  row.push_back(fmt::format("{}", record.steps));
  row.push_back(fmt::format("{:.4g}", record.flops));
  row.push_back(fmt::format("{:.4g}", static_cast<double>(record.active)));
  const bool any = cell.metric.count > 0;
  row.push_back(any ? fmt::format("{:.2f}", cell.imbalance.mean) : "–");
  row.push_back(any ? fmt::format("{:.2f}%", 100 * cell.dropped.mean) : "–");
  row.push_back(any ? fmt::format("{:.2f}", cell.dead.mean) : "–");
  row.push_back(any ? fmt::format("{:.1f}", cell.seconds.mean) : "–");
  if (!report.has_times()) return row;
  row.push_back(cell.step_seconds ? fmt::format("{:.1f}", 1000 * *cell.step_seconds) : "–");
  row.push_back(cell.relative_time ? fmt::format("{:.2f}", *cell.relative_time) : cell.baseline ? "1" : "–");
  return row;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) c == '"' ? quoted += "\"\"" : quoted += c;
  return quoted + "\"";
}

std::string csv_line(const Row& row) {
  Row fields;
  for (const std::string& field : row) fields.push_back(csv_field(field));
  return fmt::format("{}\n", fmt::join(fields, ","));
}

}  // namespace

std::string as_markdown(const Report& report) {
  Row head{"runs", report.metric.name};
  if (report.has_baseline()) head.push_back("difference [95 %]");
  for (const char* name : {"seeds", "steps", "FLOPs", "active", "imbalance", "dropped", "dead", "s"}) {
    head.emplace_back(name);
  }
  if (report.has_times()) head.insert(head.end(), {"ms/step", "relative"});
  std::vector<Row> rows;
  for (const CellReport& cell : report.cells) rows.push_back(cell_row(report, cell));
  std::string text = fmt::format("# {}\n\n{} of {} runs done, {} failed; {:.4g} FLOPs in {:.0f} s of training.\n\n",
                                 report.name, report.done, report.runs, report.failed, report.flops, report.seconds);
  text += markdown_table(head, rows);
  if (!report.effects.empty()) {
    std::vector<Row> effects;
    for (const Effect& effect : report.effects) {
      effects.push_back({escaped(effect.path), escaped(effect.label), fmt::format("{:.4f}", effect.mean),
                         fmt::format("{:+.4f}", effect.effect)});
    }
    text += "\nWhat each value comes with, all else averaged:\n\n" +
            markdown_table({"axis", "value", report.metric.name, "effect"}, effects);
  }
  return text;
}

std::string as_csv(const Report& report) {
  Row head{"id", "cell"};
  if (!report.cells.empty()) {
    for (const auto& [path, label] : report.cells.front().settings) head.push_back(path);
  }
  for (const char* name : {"seed", "state", "metric", "steps", "tokens", "flops", "parameters", "active", "seconds",
                           "imbalance", "dropped", "dead", "peak_bytes", "starts", "evaluations"}) {
    head.emplace_back(name);
  }
  std::string text = csv_line(head);
  for (const CellReport& cell : report.cells) {
    for (const RunResult& run : cell.runs) {
      const RunRecord& r = run.record;
      Row row{r.id, r.cell};
      for (const auto& [path, label] : r.settings) row.push_back(label);
      const auto number = [&](double value) { row.push_back(fmt::format("{}", value)); };
      row.push_back(fmt::format("{}", r.seed));
      row.emplace_back(state_name(run.status.state));
      row.push_back(run.metric ? fmt::format("{}", *run.metric) : "");
      for (const int64_t value : {r.steps, r.tokens}) row.push_back(fmt::format("{}", value));
      number(r.flops);
      for (const int64_t value : {r.parameters, r.active}) row.push_back(fmt::format("{}", value));
      for (const double value : {run.seconds, run.imbalance, run.dropped, run.dead, run.peak_bytes}) number(value);
      row.push_back(fmt::format("{}", run.status.history.starts));
      std::string evaluations;
      for (const auto& [source, loss] : run.evaluations) {
        evaluations += fmt::format("{}{}={}", evaluations.empty() ? "" : " ", source, loss);
      }
      row.push_back(evaluations);
      text += csv_line(row);
    }
  }
  return text;
}

}  // namespace conclave::sweep
