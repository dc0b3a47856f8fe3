// SPDX-License-Identifier: Apache-2.0
// The report of `conclave info` as text: resolved shape, parameters and FLOPs by both counters, bytes per rank. Plain
// arithmetic over the configuration; it does not check keys that it does not read.
#pragma once

#include <cstdint>
#include <string>

#include "train/run_config.h"

namespace conclave::app {

// For `ranks` ranks. Throws ConfigError where the layout does not fit the model or the batch.
std::string info_report(const train::RunConfig& config, int64_t ranks);

}  // namespace conclave::app
