// SPDX-License-Identifier: Apache-2.0
// A sweep file: a base configuration, the values that vary, and how runs are made comparable. Read as strictly as a
// run's configuration. What the values mean for a run is decided in plan.h.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "config/schema.h"
#include "config/types.h"
#include "model/accounting.h"

namespace conclave::sweep {

// What `match` may change so that a target is met.
enum class Solve { kSteps, kWidth, kBoth };
enum class Goal { kMin, kMax };

struct MatchConfig {
  std::optional<std::string> flops, tokens, active_params;
  model::Counter counter = model::Counter::kPaper;
  Solve solve = Solve::kSteps;
  double tolerance = 1e-3;

  bool any() const { return flops || tokens || active_params; }
  void fields(auto&& field) {
    field("flops", flops, "FLOPs of the whole run, or `base`: those of the base configuration");
    field("tokens", tokens, "tokens of the whole run, or `base`");
    field("active_params", active_params, "active parameters, or `base`; met by moe.expert_hidden_size");
    field("counter", counter, "paper: the closed forms of ReMoE, no norms, router, biases; exact: what runs");
    field("solve", solve,
          "what meets flops or tokens: steps, width (moe.expert_hidden_size), or both (steps, and where no whole step "
          "is near enough a width within an eighth)");
    field("tolerance", tolerance, "largest relative deviation from a target", config::kNotNegative);
  }
};

struct MetricConfig {
  std::string name = "eval/loss";
  Goal goal = Goal::kMin;

  void fields(auto&& field) {
    field("name", name,
          "eval/loss (all validation targets), eval/SOURCE/loss, or train/loss (mean of the last tenth of the steps)");
    field("goal", goal, "min or max");
  }
};

struct TimingConfig {
  int64_t steps = 0;

  void fields(auto&& field) {
    field("steps", steps, "after all runs, time so many steps of each setting alone on all cores; 0 = do not",
          config::kNotNegative);
  }
};

struct SweepConfig {
  std::string name;
  std::string base;
  std::vector<int64_t> seeds;
  MatchConfig match;
  MetricConfig metric;
  int64_t jobs = 1;
  int64_t ranks = 1;
  TimingConfig timing;

  void fields(auto&& field) {
    field("name", name, "folder of the sweep below sweeps/; the name of the file by default");
    field("base", base, "configuration that every run starts from; complete by itself", config::kRequired);
    field("seeds", seeds, "values of train.seed; every setting runs with each", config::kNotNegative);
    field("match", match, "makes runs comparable");
    field("metric", metric, "what is compared");
    field("jobs", jobs, "runs at a time; the cores are divided among them", config::kRanks);
    field("ranks", ranks, "ranks of each run", config::kRanks);
    field("timing", timing, "time per step, measured one at a time");
  }
};

// A sweep file as read. The parts with free keys stay trees: every key is a path of the configuration, or `include`.
struct Sweep {
  SweepConfig config;
  std::filesystem::path file;
  std::string text;       // the file itself
  config::Node document;  // for the places of keys
  config::Node axes;      // path: [value, ...]; all combinations
  config::Node zip;       // list of such maps; the lists of one map move together
  config::Node exclude;   // list of {path: value}; combinations that agree with one are left out
  config::Node baseline;  // {path: value}; what the others are compared with

  std::filesystem::path directory() const { return file.parent_path(); }
};

// Reads `file`. What is wrong goes to `problems`; throws ConfigError for what cannot be parsed.
Sweep load_sweep(const std::filesystem::path& file, config::Problems& problems);

// All keys, for messages and documents.
const config::Schema& sweep_schema();

}  // namespace conclave::sweep

namespace conclave::config {

template <>
struct EnumNames<model::Counter> {
  static constexpr std::array<std::pair<std::string_view, model::Counter>, 2> kNames{
      {{"paper", model::Counter::kPaper}, {"exact", model::Counter::kExact}}};
};
template <>
struct EnumNames<sweep::Solve> {
  static constexpr std::array<std::pair<std::string_view, sweep::Solve>, 3> kNames{
      {{"steps", sweep::Solve::kSteps}, {"width", sweep::Solve::kWidth}, {"both", sweep::Solve::kBoth}}};
};
template <>
struct EnumNames<sweep::Goal> {
  static constexpr std::array<std::pair<std::string_view, sweep::Goal>, 2> kNames{
      {{"min", sweep::Goal::kMin}, {"max", sweep::Goal::kMax}}};
};

}  // namespace conclave::config
