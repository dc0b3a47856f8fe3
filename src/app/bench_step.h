// SPDX-License-Identifier: Apache-2.0
// The whole training step, timed beside the machine's GEMM ceiling in the same run: routing, exchange, reduction,
// optimizer and clipping, without data loading, evaluation and saving.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/world.h"
#include "core/batch.h"
#include "parallel/mesh.h"
#include "train/run_config.h"

namespace conclave::app {

struct StepBenchOptions {
  int64_t warmup = 3, steps = 8;
  // A file of tools/make_golden.py --peer: its weights and tokens are taken instead of random ones, and its losses
  // printed beside ours. Empty = none.
  std::string reference;
};

struct StepBench {
  std::vector<double> seconds;           // of each timed step, the slowest rank's
  std::vector<double> losses;            // cross entropy of every step from the first, warm-up included
  std::vector<double> reference_losses;  // of the reference, from the first step
  double ceiling_gflops = 0;             // all ranks together, best of before, between and after
  double ceiling_spread = 0;             // (best - worst) / best of those
  std::string ceiling_name;              // the product that it is
  int64_t tokens = 0;                    // of a step
  int64_t flops_per_token = 0;           // training, exact counter
  int threads = 1;                       // of a rank
};

// Collective; the result is whole on rank 0. Throws what reading the configuration and the reference throws.
StepBench bench_step(comm::World& world, const train::RunConfig& config, const StepBenchOptions& options);

// This rank's micro-batches of a step of made-up tokens.
std::vector<Batch> made_up_batches(const train::RunConfig& config, const parallel::Mesh& mesh);
// What `body` takes on the slowest rank. Collective.
double seconds_of(const comm::Group& world, const std::function<void()>& body);

// The result as people read it.
std::string step_report(const StepBench& bench, const train::RunConfig& config, int ranks);

}  // namespace conclave::app
