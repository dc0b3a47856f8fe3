// SPDX-License-Identifier: Apache-2.0
// What a step looks like to people (one console line) and to programs (one JSON object in metrics.jsonl). Definitions:
// docs/moe.md and docs/performance.md. Rank 0 writes; the others only compute.
#pragma once

#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/log.h"
#include "train/step.h"

namespace conclave::train {

// Routing health of one MoE layer in one step.
struct LayerHealth {
  double entropy = 0;               // mean over tokens, nats
  double max_over_mean = 0;         // load of the busiest expert
  int64_t dead = 0;                 // experts without a token
  double dropped = 0;               // share of chosen pairs
  std::optional<double> sent = {};  // rows that travelled, of those of kept pairs, where similar ones travel as one
};
LayerHealth health(const moe::StepTotals& totals);

// Mean and deviation over the last values; says how unusual the next one is.
class Window {
 public:
  static constexpr size_t kSize = 128;
  // (value − mean) / deviation of the values before it; 0 while there are fewer than 8. Then adds it.
  double z_score(double value);
  nlohmann::ordered_json json() const;
  void restore(const nlohmann::ordered_json& json);

 private:
  std::deque<double> values_;
};

struct StepTimes {
  double step_seconds = 0;
  double data_seconds = 0;
};

struct MetricsTarget {
  std::filesystem::path file;
  int ranks = 1;
  bool writes = true;  // rank 0
};

class Metrics {
 public:
  // `target.file` is metrics.jsonl; records after `start_step` (of an attempt that died later) are cut off. Only rank 0
  // opens it.
  Metrics(const RunConfig& config, const MetricsTarget& target, int64_t start_step, Log& log);
  // After step `step` (counted from 1). Prints when metrics.every says so, always for the first two.
  void step(int64_t step, const StepReport& report, const StepTimes& times);
  // A validation result; also goes to the file.
  void evaluation(int64_t step, const std::string& source, double loss, int64_t tokens);
  double best_loss() const { return best_; }
  double last_loss() const { return last_; }
  double tokens_per_second() const;  // over the whole attempt, without evaluation and saving
  double useful_seconds() const { return seconds_; }
  nlohmann::ordered_json json() const;
  void restore(const nlohmann::ordered_json& json);

 private:
  struct Unusual {
    double loss = 0, norm = 0;
  };
  std::string line(int64_t step, const StepReport& report, const Unusual& z) const;
  nlohmann::ordered_json record(int64_t step, const StepReport& report, const StepTimes& times) const;
  void append(const nlohmann::ordered_json& record);

  const RunConfig& config_;
  MetricsTarget target_;
  std::ofstream file_;
  Log& log_;
  Window losses_, norms_;
  double best_ = 0, last_ = 0;
  double tokens_ = 0, seconds_ = 0;                            // of the attempt, without its first step
  double line_tokens_ = 0, line_seconds_ = 0, line_data_ = 0;  // since the last line
  int64_t line_steps_ = 0;
  bool first_ = true;
};

// "3h12m", "4m05s", "12s".
std::string short_time(double seconds);
// "1.31M", "164k", "512".
std::string short_count(double value);

}  // namespace conclave::train
