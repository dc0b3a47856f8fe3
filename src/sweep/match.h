// SPDX-License-Identifier: Apache-2.0
// Solves train.steps, and where that is wanted moe.expert_hidden_size, so that a run meets the targets of `match:`.
// Pure arithmetic on a resolved configuration; the caller applies the answer and checks it by the rules of a run.
#pragma once

#include <optional>
#include <string>

#include "sweep/sweep_config.h"
#include "train/run_config.h"

namespace conclave::sweep {

// What runs shall have in common; flops and tokens exclude each other.
struct Targets {
  std::optional<double> flops, tokens, active_params;
  model::Counter counter = model::Counter::kPaper;
  Solve solve = Solve::kSteps;
  double tolerance = 1e-3;
};

// The targets of `match`, `base` replaced by the numbers of the base. What is no number goes to `problems`.
Targets targets_of(const Sweep& sweep, const train::RunConfig& base, config::Problems& problems);

struct Solution {
  std::optional<int64_t> steps, width;  // what to change
  std::string key;                      // of the target that cannot be met, "match.flops"; empty when all are met
  std::string problem;                  // why, with the nearest two values
};

// `shared_follows`: the shared expert's width is not written, so it follows the experts'.
Solution solve(const Targets& targets, const train::RunConfig& config, bool shared_follows);

}  // namespace conclave::sweep
