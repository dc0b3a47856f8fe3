// SPDX-License-Identifier: Apache-2.0
#include "sweep/results.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <numeric>

#include "checkpoint/file.h"
#include "checkpoint/json_text.h"
#include "core/error.h"

namespace conclave::sweep {
namespace {

using checkpoint::Json;

struct StepLine {
  double loss = 0, seconds = 0, imbalance = 0, dropped = 0, dead = 0;
};

StepLine read_step(const Json& json) {
  StepLine line{json.value("loss", 0.0), json.value("step_seconds", 0.0)};
  const Json layers = json.value("moe", Json::array());
  for (const Json& layer : layers) {
    const auto share = 1.0 / static_cast<double>(layers.size());
    line.imbalance += share * layer.value("max_over_mean", 0.0);
    line.dropped += share * layer.value("dropped", 0.0);
    line.dead += share * layer.value("dead", 0.0);
  }
  return line;
}

// A line that a kill cut short is not complete JSON; a resume would cut it off, too.
std::vector<StepLine> read_steps(const std::filesystem::path& metrics) {
  std::vector<StepLine> steps;
  std::ifstream file(metrics);
  for (std::string text; std::getline(file, text);) {
    const Json json = Json::parse(text, nullptr, false);
    if (json.is_object() && json.contains("grad_norm")) steps.push_back(read_step(json));
  }
  return steps;
}

void read_metrics(RunResult& result, const std::filesystem::path& metrics) {
  const auto steps = read_steps(metrics);
  for (const StepLine& step : steps) {
    result.losses.push_back(step.loss);
    result.seconds += step.seconds;
  }
  const size_t begin = tail_begin(steps.size());
  const auto count = static_cast<double>(steps.size() - begin);
  for (size_t i = begin; i < steps.size(); ++i) {
    result.imbalance += steps[i].imbalance / count;
    result.dropped += steps[i].dropped / count;
    result.dead += steps[i].dead / count;
  }
}

std::optional<double> value_of(const RunResult& result, const std::vector<double>& targets, const std::string& metric) {
  if (metric == "train/loss" && !result.losses.empty()) {
    const auto begin = result.losses.begin() + static_cast<std::ptrdiff_t>(tail_begin(result.losses.size()));
    return std::accumulate(begin, result.losses.end(), 0.0) / static_cast<double>(result.losses.end() - begin);
  }
  double sum = 0, all = 0;
  for (size_t i = 0; i < result.evaluations.size(); ++i) {
    const auto& [source, loss] = result.evaluations[i];
    if (metric == "eval/" + source + "/loss") return loss;
    sum += loss * targets[i];
    all += targets[i];
  }
  return metric == "eval/loss" && all > 0 ? std::optional(sum / all) : std::nullopt;
}

void read_final(RunResult& result, const std::filesystem::path& file, const std::string& metric) {
  const Json json =
      checkpoint::parse_json(checkpoint::read_text(checkpoint::File::open(file), int64_t{64} << 20), file.string());
  std::vector<double> targets;
  std::string known = "train/loss";
  for (const Json& entry : checkpoint::field(json, "evaluation", file.string())) {
    const auto source = checkpoint::text_field(entry, "source", file.string());
    result.evaluations.emplace_back(source, checkpoint::field(entry, "loss", file.string()).get<double>());
    targets.push_back(static_cast<double>(checkpoint::count_field(entry, "tokens", file.string())));
    known += fmt::format(", eval/{}/loss", source);
  }
  result.peak_bytes = json.value("peak_bytes", 0.0);
  result.metric = value_of(result, targets, metric);
  if (result.metric) return;
  throw ConfigError("metric.name: the runs have no '{}'; they have: {}{}", metric, known,
                    targets.empty() ? " (without data.valid nothing is evaluated)" : ", eval/loss");
}

}  // namespace

size_t tail_begin(size_t steps) { return steps - std::min(steps, std::max<size_t>(steps / 10, 1)); }

RunResult read_result(const Folder& folder, const RunRecord& record, const std::string& metric) {
  RunResult result;
  result.record = record;
  result.status = status_of(folder, record);
  const auto run = folder.run(record.id);
  read_metrics(result, run / "metrics.jsonl");
  if (result.status.state == State::kDone) read_final(result, run / "result.json", metric);
  result.step_seconds = median_step_seconds(folder.timing(record.id) / "metrics.jsonl");
  return result;
}

std::optional<double> median_step_seconds(const std::filesystem::path& metrics) {
  constexpr size_t kWarmUp = 2;
  std::vector<double> seconds;
  for (const StepLine& step : read_steps(metrics)) seconds.push_back(step.seconds);
  if (seconds.size() <= kWarmUp) return std::nullopt;
  seconds.erase(seconds.begin(), seconds.begin() + kWarmUp);
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

}  // namespace conclave::sweep
