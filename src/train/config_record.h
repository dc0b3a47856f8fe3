// SPDX-License-Identifier: Apache-2.0
// The configuration as checkpoints keep it, and the model that a checkpoint is of.
#pragma once

#include <string>
#include <utility>

#include "checkpoint/manifest.h"
#include "train/run_config.h"

namespace conclave::train {

// What a checkpoint must agree with on resume, and what may change.
checkpoint::ConfigRecord config_record(const RunConfig& config);

// The sections `model` and `moe` that `record` was made from, as far as it keeps them; the rest is at its defaults.
// Throws ConfigError, naming `where`, when they cannot be read.
std::pair<model::ModelConfig, moe::MoeConfig> recorded_model(const checkpoint::ConfigRecord& record,
                                                             const std::string& where);

}  // namespace conclave::train
