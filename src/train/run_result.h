// SPDX-License-Identifier: Apache-2.0
// What is left of a run for programs: result.json, written as the last act of training, and the two numbers by which
// runs are compared without training them: the FLOPs a configuration asks for, and the digest of what it computes.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "model/accounting.h"
#include "train/run_config.h"

namespace conclave::train {

class Trainer;

// FLOPs of all train.steps steps of a resolved configuration, forward and backward, over all ranks; nothing recomputed.
double planned_flops(const RunConfig& config, model::Counter counter);
// Tokens of all train.steps steps.
int64_t planned_tokens(const RunConfig& config);

// Digest (32 hexadecimal digits) of the values of a resolved configuration that decide what is learned. Layout,
// intervals of metrics, evaluations and checkpoints, and time limits are left out.
std::string config_digest(const RunConfig& config);

// `peak_bytes`: the most memory that a rank held. Numbers that must compare equal between runs are also given in
// hexadecimal.
nlohmann::ordered_json run_result(const Trainer& trainer, const RunConfig& config, int64_t peak_bytes);

}  // namespace conclave::train
