// SPDX-License-Identifier: Apache-2.0
#include "sweep/folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>

#include "checkpoint/file.h"
#include "checkpoint/json_text.h"
#include "core/error.h"
#include "sweep/child.h"

namespace conclave::sweep {
namespace {

using checkpoint::count_field;
using checkpoint::field;
using checkpoint::Json;
using checkpoint::text_field;
namespace fs = std::filesystem;

constexpr const char* kFormat = "conclave-sweep";
constexpr int64_t kVersion = 1;
constexpr int64_t kMostBytes = int64_t{64} << 20;

Json to_json(const RunRecord& record) {
  auto settings = Json::array();
  for (const auto& [path, label] : record.settings) settings.push_back({path, label});
  return {
      {"id", record.id},         {"cell", record.cell},     {"settings", settings},  {"seed", record.seed},
      {"steps", record.steps},   {"tokens", record.tokens}, {"flops", record.flops}, {"parameters", record.parameters},
      {"active", record.active}, {"digest", record.digest}};
}

RunRecord from_json(const Json& json, const std::string& where) {
  RunRecord record;
  record.id = text_field(json, "id", where);
  record.cell = text_field(json, "cell", where);
  for (const Json& setting : field(json, "settings", where)) {
    record.settings.emplace_back(setting.at(0).get<std::string>(), setting.at(1).get<std::string>());
  }
  record.seed = count_field(json, "seed", where);
  record.steps = count_field(json, "steps", where);
  record.tokens = count_field(json, "tokens", where);
  record.flops = field(json, "flops", where).get<double>();
  record.parameters = count_field(json, "parameters", where);
  record.active = count_field(json, "active", where);
  record.digest = text_field(json, "digest", where);
  return record;
}

Json read_json(const fs::path& file) {
  return checkpoint::parse_json(checkpoint::read_text(checkpoint::File::open(file), kMostBytes), file.string());
}

// Of the last complete line that is about a step; reads the end of the file only.
int64_t last_step(const fs::path& metrics) {
  constexpr std::streamoff kEnd = 1 << 16;
  std::ifstream file(metrics, std::ios::binary | std::ios::ate);
  if (!file) return 0;
  file.seekg(std::max<std::streamoff>(0, file.tellg() - kEnd));
  int64_t step = 0;
  for (std::string line; std::getline(file, line);) {
    const Json record = Json::parse(line, nullptr, false);
    if (record.is_object()) step = record.value("step", step);
  }
  return step;
}

void write_if_new(const fs::path& file, const std::string& text) {
  std::error_code error;
  if (fs::is_regular_file(file, error)) {
    if (checkpoint::read_text(checkpoint::File::open(file), kMostBytes) == text) return;
  }
  checkpoint::write_file_atomically(file, text);
}

}  // namespace

void Folder::check_fits(const Plan& plan) const {
  if (!fs::exists(root_ / "plan.json")) return;
  std::map<std::string, const RunRecord*> now;
  for (const auto& run : plan.runs) now[run.record.id] = &run.record;
  std::string gone, changed;
  for (const RunRecord& old : read_plan()) {
    const auto found = now.find(old.id);
    const std::string line = fmt::format("\n  {} {} seed {}", old.id, old.cell, old.seed);
    if (found == now.end()) gone += line;
    if (found != now.end() && found->second->digest != old.digest) changed += line;
  }
  if (gone.empty() && changed.empty()) return;
  std::string text = fmt::format("{} holds another sweep; nothing was started", root_.string());
  if (!gone.empty()) text += "\nruns that the sweep no longer has:" + gone;
  if (!changed.empty()) text += "\nruns that would now compute something else (the base has changed):" + changed;
  throw ConfigError("{}\n  Values and seeds may be added. For anything else give the sweep another name:, or --dir.",
                    text);
}

void Folder::write(const Plan& plan) const {
  auto runs = Json::array();
  for (const auto& [record, config] : plan.runs) {
    std::error_code error;
    fs::create_directories(job(record.id), error);
    if (error) throw IoError("cannot create {}: {}", job(record.id).string(), error.message());
    write_if_new(this->config(record.id),
                 fmt::format("# {} seed {}\n{}", record.cell, record.seed, train::to_yaml(config)));
    runs.push_back(to_json(record));
  }
  fs::create_directories(root_ / "runs");
  const Json json{{"format", kFormat}, {"version", kVersion}, {"name", plan.sweep.config.name}, {"runs", runs}};
  write_if_new(root_ / "sweep.yaml", plan.sweep.text);
  write_if_new(root_ / "plan.json", json.dump(1) + "\n");
}

std::vector<RunRecord> Folder::read_plan() const {
  const auto file = root_ / "plan.json";
  if (!fs::exists(file)) {
    throw UsageError(
        "{} does not exist: this sweep was not started here\n  Start it with `conclave sweep run`, or name "
        "its folder with --dir.",
        file.string());
  }
  const Json json = read_json(file);
  if (text_field(json, "format", file.string()) != kFormat || count_field(json, "version", file.string()) != kVersion) {
    throw DataError("{} is not of a sweep of this version", file.string());
  }
  std::vector<RunRecord> records;
  for (const Json& run : field(json, "runs", file.string())) records.push_back(from_json(run, file.string()));
  return records;
}

std::string_view state_name(State state) {
  switch (state) {
    case State::kWaiting:
      return "waiting";
    case State::kRunning:
      return "running";
    case State::kBegun:
      return "begun";
    case State::kFailed:
      return "failed";
    case State::kDone:
      return "done";
  }
  return "";
}

bool is_done(const fs::path& run, const std::string& digest, int64_t steps) {
  const auto file = run / "result.json";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return false;
  try {
    const Json json = read_json(file);
    return text_field(json, "config_digest", file.string()) == digest &&
           count_field(json, "step", file.string()) == steps;
  } catch (const DataError&) {  // a damaged one is none: the run is started again and writes another
    return false;
  }
}

RunStatus status_of(const Folder& folder, const RunRecord& record) {
  RunStatus status;
  status.step = last_step(folder.run(record.id) / "metrics.jsonl");
  status.history = read_history(folder.journal(record.id));
  const auto& ending = status.history.ending;
  if (is_done(folder.run(record.id), record.digest, record.steps)) {
    status.state = State::kDone;
  } else if (ending && ending->failed()) {
    status.state = State::kFailed;
  } else if (!ending && status.history.ticks > 0 && start_ticks(status.history.process) == status.history.ticks) {
    status.state = State::kRunning;
  } else if (status.history.starts > 0 || status.step > 0) {
    status.state = State::kBegun;
  }
  return status;
}

std::string status_table(const Folder& folder, const std::vector<RunRecord>& records) {
  std::map<State, int> counts;
  std::string lines;
  for (const RunRecord& record : records) {
    const RunStatus status = status_of(folder, record);
    ++counts[status.state];
    lines += fmt::format("{}  {:<8} {:>8}/{:<8} {} seed {}", record.id, state_name(status.state), status.step,
                         record.steps, record.cell, record.seed);
    if (status.state == State::kFailed) {
      lines += fmt::format("  exit code {}, see {}", status.history.ending->code,
                           (folder.job(record.id) / "stderr.log").string());
    }
    lines += "\n";
  }
  std::string summary = fmt::format("{} runs", records.size());
  for (const auto& [state, count] : counts) summary += fmt::format(", {} {}", count, state_name(state));
  return summary + "\n" + lines;
}

}  // namespace conclave::sweep
