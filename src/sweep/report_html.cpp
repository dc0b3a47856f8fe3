// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "sweep/chart.h"
#include "sweep/report.h"

namespace conclave::sweep {
namespace {

constexpr size_t kBuckets = 60, kStepsInBucket = 4;  // of a curve: single steps are noise
// Okabe and Ito's colours, which the colour-blind can tell apart; cells beyond them share grey.
constexpr std::array kColours{"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6D00"};
constexpr const char* kGrey = "#a8adb3";

constexpr const char* kStyle = R"(<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2024; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { margin: 0.3rem 0 1rem; color: #555c63; }
svg { width: 100%; height: auto; margin: 0.6rem 0; } svg text { font: 12px system-ui, sans-serif; fill: #1c2024; }
svg .title { font-size: 14px; font-weight: 600; } svg .tick { fill: #555c63; font-size: 11px; }
svg .name { fill: #555c63; } .grid { stroke: #e4e7ea; stroke-width: 1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.55rem; border-bottom: 1px solid #e4e7ea; text-align: right; white-space: nowrap; }
th { color: #555c63; font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.key { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.5em; }
.better { color: #006b4a; } .worse { color: #a33c00; } .failed { color: #a33c00; font-weight: 600; }
</style>
)";

std::string colour(size_t rank) { return rank < kColours.size() ? kColours[rank] : kGrey; }

// Mean over the steps of each bucket.
std::vector<double> bucket_means(const std::vector<double>& losses, size_t buckets) {
  std::vector<double> means;
  for (size_t b = 0; b < buckets; ++b) {
    const size_t begin = b * losses.size() / buckets, end = (b + 1) * losses.size() / buckets;
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += losses[i];
    means.push_back(sum / static_cast<double>(end - begin));
  }
  return means;
}

// Training loss against FLOPs spent, mean and standard error over the seeds that are done.
Curve curve_of(const CellReport& cell, size_t rank) {
  Curve curve{cell.cell, colour(rank), {}, {}, {}};
  size_t steps = 0;
  for (const RunResult& run : cell.runs) {
    if (run.metric) steps = run.losses.size();
  }
  const size_t buckets = std::clamp<size_t>(steps / kStepsInBucket, std::min<size_t>(steps, 1), kBuckets);
  std::vector<std::vector<double>> means;
  for (const RunResult& run : cell.runs) {
    if (run.metric && run.losses.size() == steps) means.push_back(bucket_means(run.losses, buckets));
  }
  for (size_t b = 0; b < buckets; ++b) {
    std::vector<double> values;
    for (const auto& run : means) values.push_back(run[b]);
    const Summary summary = summarise(values);
    curve.x.push_back(cell.runs.front().record.flops * (static_cast<double>(b) + 0.5) / static_cast<double>(buckets));
    curve.y.push_back(summary.mean);
    curve.error.push_back(summary.error);
  }
  return curve;
}

std::string head(const Report& report) {
  std::string text = fmt::format("<tr><th>runs</th><th>{}</th>", escape_markup(report.metric.name));
  if (report.has_baseline()) text += "<th>difference</th><th>95 % interval</th>";
  text +=
      "<th>seeds</th><th>steps</th><th>FLOPs</th><th>active</th><th>imbalance</th><th>dropped</th><th>dead</th>"
      "<th>s</th>";
  if (report.has_times()) text += "<th>ms/step</th><th>relative</th>";
  return text + "</tr>\n";
}

std::string cell_of_table(const std::string& text) { return "<td>" + text + "</td>"; }

// Coloured where the interval leaves out zero.
std::string difference_cells(const CellReport& cell, Goal goal) {
  if (cell.baseline) return "<td>baseline</td><td></td>";
  if (!cell.to_baseline || cell.to_baseline->pairs == 0) return "<td>–</td><td></td>";
  const Difference& d = *cell.to_baseline;
  if (!d.has_interval()) return fmt::format("<td>{:+.4f}</td><td></td>", d.mean);
  const bool lower = d.high<0, higher = d.low> 0;
  const bool good = goal == Goal::kMin ? lower : higher;
  const char* kind = !lower && !higher ? "" : good ? "better" : "worse";
  return fmt::format("<td class=\"{}\">{:+.4f}</td><td class=\"{}\">{:+.4f} … {:+.4f}</td>", kind, d.mean, kind, d.low,
                     d.high);
}

std::string metric_cell(const CellReport& cell) {
  const bool failed = std::any_of(cell.runs.begin(), cell.runs.end(),
                                  [](const RunResult& run) { return run.status.state == State::kFailed; });
  if (cell.metric.count == 0) return failed ? "<td class=\"failed\">failed</td>" : "<td>–</td>";
  if (cell.metric.count == 1) return cell_of_table(fmt::format("{:.4f}", cell.metric.mean));
  return cell_of_table(fmt::format("{:.4f} ± {:.4f}", cell.metric.mean, cell.metric.error));
}

std::string table_row(const Report& report, size_t rank) {
  const CellReport& cell = report.cells[rank];
  const RunRecord& record = cell.runs.front().record;
  std::string text = fmt::format("<tr><td><span class=\"key\" style=\"background:{}\"></span>{}</td>", colour(rank),
                                 escape_markup(cell.cell));
  text += metric_cell(cell);
  if (report.has_baseline()) text += difference_cells(cell, report.metric.goal);
  text += fmt::format("<td>{}/{}</td><td>{}</td><td>{:.4g}</td><td>{:.4g}</td>", cell.metric.count, cell.runs.size(),
                      record.steps, record.flops, static_cast<double>(record.active));
  if (cell.metric.count > 0) {
    text += fmt::format("<td>{:.2f}</td><td>{:.2f} %</td><td>{:.2f}</td><td>{:.1f}</td>", cell.imbalance.mean,
                        100 * cell.dropped.mean, cell.dead.mean, cell.seconds.mean);
  } else {
    text += "<td>–</td><td>–</td><td>–</td><td>–</td>";
  }
  if (report.has_times()) {
    text += cell_of_table(cell.step_seconds ? fmt::format("{:.1f}", 1000 * *cell.step_seconds) : "–");
    text += cell_of_table(cell.relative_time ? fmt::format("{:.2f}", *cell.relative_time) : cell.baseline ? "1" : "–");
  }
  return text + "</tr>\n";
}

std::string effects_table(const Report& report) {
  if (report.effects.empty()) return "";
  std::string text = fmt::format(
      "<h2>Axes</h2>\n<p>What each value comes with, all else averaged.</p>\n<div class=\"scroll\"><table>\n"
      "<tr><th>axis</th><th>value</th><th>{}</th><th>effect</th></tr>\n",
      escape_markup(report.metric.name));
  for (const Effect& effect : report.effects) {
    text += fmt::format("<tr><td>{}</td><td>{}</td><td>{:.4f}</td><td>{:+.4f}</td></tr>\n", escape_markup(effect.path),
                        escape_markup(effect.label), effect.mean, effect.effect);
  }
  return text + "</table></div>\n";
}

std::string charts(const Report& report) {
  std::vector<Curve> curves;
  std::vector<Mark> marks;
  for (size_t rank = 0; rank < report.cells.size(); ++rank) {
    const CellReport& cell = report.cells[rank];
    if (cell.metric.count == 0) continue;
    curves.push_back(curve_of(cell, rank));
    marks.push_back({cell.cell, colour(rank), cell.metric.mean, cell.metric.error, {}});
    for (const RunResult& run : cell.runs) {
      if (run.metric) marks.back().single.push_back(*run.metric);
    }
  }
  if (curves.empty()) return "<p>No run is done yet.</p>\n";
  return mark_chart(marks, {report.metric.name + ", mean ± standard error, and each seed", report.metric.name, ""}) +
         curve_chart(curves, {"Training loss, mean ± standard error over seeds, colours as above", "FLOPs", "loss"});
}

}  // namespace

std::string as_html(const Report& report) {
  const std::string name = escape_markup(report.name);
  std::string text = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\">\n<title>{}</title>\n{}</head>\n<body>\n<h1>{}</h1>\n"
      "<p>{} of {} runs done, {} failed; {:.4g} FLOPs in {:.0f} s of training.</p>\n",
      name, kStyle, name, report.done, report.runs, report.failed, report.flops, report.seconds);
  text += charts(report) + "<h2>Runs</h2>\n<div class=\"scroll\"><table>\n" + head(report);
  for (size_t rank = 0; rank < report.cells.size(); ++rank) text += table_row(report, rank);
  return text + "</table></div>\n" + effects_table(report) + "</body>\n</html>\n";
}

}  // namespace conclave::sweep
