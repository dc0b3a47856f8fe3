// SPDX-License-Identifier: Apache-2.0
#include "sweep/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "checkpoint/digest.h"
#include "config/document.h"
#include "config/json.h"
#include "config/merge.h"
#include "core/error.h"
#include "sweep/match.h"
#include "train/run_document.h"
#include "train/run_result.h"

namespace conclave::sweep {
namespace {

using config::Node;
using config::Problems;
using train::RunConfig;

constexpr size_t kIdDigits = 10;
constexpr size_t kShownProblems = 20;

// A line of the source or the mark below it, as config::Origin::excerpt writes them.
bool is_excerpt(const std::string& line) { return line.size() > 8 && line.compare(6, 3, " | ") == 0; }

// The problems of a configuration one by one, without the headline. Each ends with its excerpt.
std::vector<std::string> split_problems(const std::string& report) {
  std::vector<std::string> problems;
  std::istringstream lines(report);
  bool ended = true;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("invalid configuration: ")) continue;
    if (ended && !is_excerpt(line)) problems.emplace_back();
    ended = is_excerpt(line);
    problems.back() += line + "\n";
  }
  return problems;
}

// The problems of many runs, each once, with the runs it concerns.
class RunProblems {
 public:
  void add(const std::string& cell, const ConfigError& error) {
    for (const std::string& problem : split_problems(error.what())) {
      auto& cells = runs_[problem];
      if (cells.empty()) order_.push_back(problem);
      if (cells.empty() || cells.back() != cell) cells.push_back(cell);
    }
  }
  size_t count() const { return order_.size(); }
  std::string text() const {
    std::string all;
    for (size_t i = 0; i < std::min(order_.size(), kShownProblems); ++i) {
      const auto& cells = runs_.at(order_[i]);
      const size_t others = cells.size() - 1;
      const auto more = others == 0 ? "" : fmt::format(" and {} other{}", others, others == 1 ? "" : "s");
      all += fmt::format("in {}{}:\n{}", cells.front(), more, order_[i]);
    }
    if (order_.size() > kShownProblems) all += fmt::format("... and {} more\n", order_.size() - kShownProblems);
    return all;
  }

 private:
  std::vector<std::string> order_;
  std::map<std::string, std::vector<std::string>> runs_;
};

nlohmann::json flat(const RunConfig& config) { return config::to_json(config).flatten(); }

// Of every value that is not the base's, whichever way it came about.
std::string id_of(const nlohmann::json& base, const RunConfig& config) {
  const nlohmann::json mine = flat(config);
  auto difference = nlohmann::json::object();
  for (const auto& [path, value] : mine.items()) {
    if (!base.contains(path) || base[path] != value) difference[path] = value;
  }
  for (const auto& [path, value] : base.items()) {
    if (!mine.contains(path)) difference[path] = nullptr;
  }
  return checkpoint::xxh3(difference.dump()).hex().substr(0, kIdDigits);
}

Node number_node(int64_t value, config::Origin origin, const std::string& via) {
  Node node = config::scalar_node(std::to_string(value));
  origin.via = via;
  node.origin = std::move(origin);
  return node;
}

class Planner {
 public:
  explicit Planner(const std::filesystem::path& file) { plan_.sweep = load_sweep(file, file_problems_); }

  Plan make() {
    read_base();
    const auto points = make_points(plan_.sweep, point_problems_);
    check_solved_axes();
    if (base_) {
      targets_ = targets_of(plan_.sweep, *base_, problems_);
      for (const Point& point : points) plan_run(point);
      name_runs();
    }
    throw_if_any();
    return std::move(plan_);
  }

 private:
  const Sweep& sweep() const { return plan_.sweep; }
  train::LoadOptions options() const { return {sweep().config.ranks, train::Purpose::kTrain, true}; }

  void read_base() {
    if (sweep().config.base.empty()) return;
    const auto file = (sweep().directory() / sweep().config.base).lexically_normal();
    const Node* written = sweep().document.get("base");
    try {
      if (!std::filesystem::is_regular_file(file)) {
        problems_.add(written->origin, "base", fmt::format("there is no file {}", file.string()));
        return;
      }
      Problems of_base;
      base_document_ = config::read_with_includes(file, of_base);
      of_base.throw_if_any();
      base_ = train::load_config(base_document_, options()).config;
    } catch (const ConfigError& error) {
      run_problems_.add("the base configuration " + file.string(), error);
    }
  }

  // What match solves cannot be an axis, too.
  void check_solved_axes() {
    const MatchConfig& match = sweep().config.match;
    const bool steps = match.tokens || (match.flops && (match.solve != Solve::kWidth || match.active_params));
    const bool width = match.active_params || (match.flops && match.solve != Solve::kSteps);
    const auto refuse = [&](const Node& axes, const char* path, const char* advice) {
      for (const auto& axis : axes.map) {
        if (axis.key == path) problems_.add(axis.origin, path, fmt::format("is what match solves; {}", advice));
      }
    };
    std::vector<const Node*> all{&sweep().axes};
    for (const Node& group : sweep().zip.list) all.push_back(&group);
    for (const Node* axes : all) {
      if (steps) refuse(*axes, "train.steps", "take the axis out, or match.solve: width");
      if (width) refuse(*axes, "moe.expert_hidden_size", "take the axis out, or match.solve: steps");
    }
  }

  // The base with the files and values of the point laid over it; files first, whatever the order of the axes.
  Node document_of(const Point& point) {
    Node document = base_document_;
    for (const Setting& setting : point.settings) {
      if (setting.path == kInclude && setting.value.is_scalar()) config::merge(document, included(setting));
    }
    for (const Setting& setting : point.settings) {
      if (setting.path == kInclude || set_at(document, setting.path, setting.value)) continue;
      throw ConfigError(
          "{}: {}: cannot be set in the base configuration: a section or list on the way is written otherwise",
          setting.value.origin.where(), setting.path);
    }
    if (point.seed) set_at(document, "train.seed", number_node(*point.seed, sweep().document.get("seeds")->origin, ""));
    return document;
  }

  Node included(const Setting& setting) {
    const auto file = (sweep().directory() / setting.value.text).lexically_normal();
    const auto known = included_.find(file);
    if (known != included_.end()) return known->second;
    if (!std::filesystem::is_regular_file(file)) {
      throw ConfigError("{}: include: there is no file {}\n{}", setting.value.origin.where(), file.string(),
                        setting.value.origin.excerpt());
    }
    Problems problems;
    Node document = config::read_with_includes(file, problems);
    problems.throw_if_any();
    return included_[file] = document;
  }

  void plan_run(const Point& point) {
    try {
      Node document = document_of(point);
      auto loaded = train::load_config(document, options());
      if (sweep().config.match.any()) loaded = matched(document, loaded);
      for (const auto& warning : loaded.warnings) {
        if (warned_.insert(warning).second) plan_.warnings.push_back(warning);
      }
      plan_.runs.push_back({record_of(point, loaded.config), std::move(loaded.config)});
    } catch (const ConfigError& error) {
      run_problems_.add(point.cell(), error);
    }
  }

  train::LoadedConfig matched(Node& document, const train::LoadedConfig& loaded) {
    const Node* shared = config::find(loaded.document, "moe.shared_hidden_size");
    const Solution solution = solve(targets_, loaded.config, shared == nullptr || shared->is_null());
    if (!solution.key.empty()) {
      Problems unreachable;
      unreachable.fail(config::origin_of(sweep().document, solution.key), solution.key, solution.problem);
    }
    const auto origin = config::origin_of(sweep().document, "match");
    if (solution.steps) set_at(document, "train.steps", number_node(*solution.steps, origin, "solved by match"));
    if (solution.width) {
      set_at(document, "moe.expert_hidden_size", number_node(*solution.width, origin, "solved by match"));
    }
    return train::load_config(document, options());
  }

  RunRecord record_of(const Point& point, const RunConfig& config) const {
    const auto counter = sweep().config.match.counter;
    const auto parameters = model::count_parameters(model::model_shape(config.model, config.moe), counter);
    RunRecord record;
    record.cell = point.cell();
    for (const Setting& setting : point.settings) record.settings.emplace_back(setting.path, setting.label);
    record.seed = config.train.seed;
    record.steps = config.train.steps;
    record.tokens = train::planned_tokens(config);
    record.flops = train::planned_flops(config, counter);
    record.parameters = parameters.total();
    record.active = parameters.active();
    record.digest = train::config_digest(config);
    return record;
  }

  void name_runs() {
    const auto base = flat(*base_);
    std::map<std::string, const RunRecord*> names;
    for (PlannedRun& run : plan_.runs) {
      run.record.id = id_of(base, run.config);
      const auto [other, fresh] = names.emplace(run.record.id, &run.record);
      if (fresh) continue;
      problems_.add(sweep().document.origin, "axes",
                    fmt::format("'{}' and '{}' with seed {} are the same run; leave one of them out",
                                other->second->cell, run.record.cell, run.record.seed));
    }
  }

  void throw_if_any() const {
    size_t count = run_problems_.count();
    std::string body;
    for (const Problems* problems : {&file_problems_, &point_problems_, &problems_}) {
      count += problems->count();
      if (problems->count() == 0) continue;
      const std::string report = problems->report();
      body += report.substr(report.find('\n') + 1) + "\n";
    }
    if (count == 0) return;
    body += run_problems_.text();
    body.pop_back();
    throw ConfigError("{}: {} problem{}; nothing was started\n{}", sweep().file.string(), count, count == 1 ? "" : "s",
                      body);
  }

  Plan plan_;
  Problems file_problems_, point_problems_, problems_;  // a report shows ten, so each has its own
  RunProblems run_problems_;
  Node base_document_;
  std::optional<RunConfig> base_;
  Targets targets_;
  std::map<std::filesystem::path, Node> included_;
  std::set<std::string> warned_;
};

}  // namespace

Plan make_plan(const std::filesystem::path& file) { return Planner(file).make(); }

std::string plan_table(const Plan& plan) {
  size_t width = 4;
  double flops = 0, tokens = 0;
  for (const auto& run : plan.runs) width = std::max(width, run.record.cell.size());
  std::string text = fmt::format("{:<10}  {:<{}}  {:>6} {:>8} {:>10} {:>10} {:>10}\n", "id", "runs", width, "seed",
                                 "steps", "tokens", "FLOPs", "active");
  for (const auto& [record, config] : plan.runs) {
    text += fmt::format("{}  {:<{}}  {:>6} {:>8} {:>10.4g} {:>10.5g} {:>10.4g}\n", record.id, record.cell, width,
                        record.seed, record.steps, static_cast<double>(record.tokens), record.flops,
                        static_cast<double>(record.active));
    flops += record.flops;
    tokens += static_cast<double>(record.tokens);
  }
  return text + fmt::format("{} runs, {:.4g} tokens, {:.5g} FLOPs\n", plan.runs.size(), tokens, flops);
}

}  // namespace conclave::sweep
