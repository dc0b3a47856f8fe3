// SPDX-License-Identifier: Apache-2.0
// One MoE layer, forward and forward with backward, beside what bounds it, in turns in one run: the machine's GEMM
// ceiling and the products of a dense layer of equal FLOPs (figure F1); on the device path also what moves rows, beside
// a plain copy (a proxy of F4, since one device exchanges nothing); and the bytes it holds for its backward (F6).
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "comm/world.h"
#include "train/run_config.h"

namespace conclave::app {

struct LayerBenchOptions {
  int64_t repetitions = 7;  // of everything, in turns
  double seconds = 0.1;     // that a repetition takes at least; shorter things run several times in it
};

// What was timed, each repetition.
struct TimedWork {
  std::string name;
  double amount = 0;            // of one run: FLOPs, or bytes
  std::vector<double> seconds;  // of one run

  double median() const;  // seconds
  double best() const;
  double speed() const { return amount / median(); }
};

// On one device: rows to where experts want them, and the sum of each token's rows. Bytes are what must cross memory.
struct RowMoves {
  TimedWork own, copy, operators;  // operators: ATen's index_select and index_add_
};

struct LayerBench {
  std::string device, precision;
  int threads = 1;
  int64_t tokens = 0, width = 0, experts = 0, top_k = 0, expert_width = 0;
  double busiest = 1;  // rows of the busiest expert, in means
  TimedWork forward, training, dense, ceiling;
  std::optional<RowMoves> moves;
  int64_t held_bytes = 0, least_bytes = 0;

  double of_ceiling() const { return training.speed() / (ceiling.amount / ceiling.best()); }  // F1
  double of_dense() const { return training.speed() / dense.speed(); }
  double held() const { return static_cast<double>(held_bytes) / static_cast<double>(least_bytes); }  // F6
  double ceiling_spread() const;
};

// Of one rank. Throws ConfigError where there are more, or no MoE layer.
LayerBench bench_layer(comm::World& world, const train::RunConfig& config, const LayerBenchOptions& options);
// The same on a device that is chosen and in use; train.device is cpu or cuda.
LayerBench measure_layer(const train::RunConfig& config, const LayerBenchOptions& options);

// The result as people read it, and for programs.
std::string layer_report(const LayerBench& bench);
nlohmann::json to_json(const LayerBench& bench);

}  // namespace conclave::app
