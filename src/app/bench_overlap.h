// SPDX-License-Identifier: Apache-2.0
// How much of the exchanges' time each executor hides behind computation (figure F5): the same micro-batches with
// exchanges, with exchanges played back from memory, and the exchanges alone, in turns in one run.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/world.h"
#include "train/run_config.h"

namespace conclave::app {

struct OverlapOptions {
  int64_t repetitions = 7;
};

struct OverlapRow {
  std::string pass;      // "forward", "forward + backward"
  std::string executor;  // with its chunks
  std::string progress;
  // Seconds of all micro-batches on the slowest rank, the median of the repetitions.
  double both = 0;     // as in training
  double compute = 0;  // exchanges cost nothing
  double comm = 0;     // nothing is computed
};

struct OverlapBench {
  std::vector<OverlapRow> rows;
  std::vector<double> bytes;              // that a rank sends in a pass, by pass
  double loss_difference = 0;             // largest relative one between executors
  int64_t micro_batches = 0, tokens = 0;  // of a rank
  int threads = 1;
};

// (comm + compute − both) / min(comm, compute), comm and compute being those of the sequential executor: what another
// one computes in addition counts against it.
double hidden_share(const OverlapBench& bench, const OverlapRow& row);

// Collective; the result is whole on rank 0. Throws ConfigError where nothing is exchanged,
// NumericError where executors do not agree.
OverlapBench bench_overlap(comm::World& world, const train::RunConfig& config, const OverlapOptions& options);

// The result as people read it, and for programs.
std::string overlap_report(const OverlapBench& bench);
nlohmann::json to_json(const OverlapBench& bench);

}  // namespace conclave::app
