// SPDX-License-Identifier: Apache-2.0
// What it costs to train together: the whole step of a configuration beside that of ranks which train on their own at
// the same time, and beside the same step with nothing hidden, in turns in one run. Made-up tokens; no data is read.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/world.h"
#include "train/run_config.h"

namespace conclave::app {

struct ScalingOptions {
  int64_t warmup = 1, repetitions = 5;
};

struct ScalingRow {
  std::string name;
  std::vector<double> seconds;  // of each step on the slowest rank
};

struct ScalingBench {
  // isolated: every rank has all experts and its share of the sequences. naive: together, executor sequential, sums and
  // weights waited for. waiting: the configuration, sums and weights waited for. overlapped: the configuration, with
  // both under way beside the computation.
  ScalingRow isolated, naive, waiting, overlapped;
  int64_t tokens = 0;          // of a rank and step
  double loss_difference = 0;  // largest relative one between those that train together
  int threads = 1;

  double communication() const;  // of the naive order, in shares of the isolated step
  double efficiency() const;     // tokens/s of a rank, overlapped / isolated
};

// Collective; the result is whole on rank 0. Throws ConfigError where ranks cannot train on their own (tp), and
// NumericError where those that train together do not agree.
ScalingBench bench_scaling(comm::World& world, const train::RunConfig& config, const ScalingOptions& options);

// The result as people read it, and for programs.
std::string scaling_report(const ScalingBench& bench);
nlohmann::json to_json(const ScalingBench& bench);

}  // namespace conclave::app
