// SPDX-License-Identifier: Apache-2.0
// What the byte counts of model/accounting.h need to know of a run.
#pragma once

#include "model/accounting.h"
#include "train/run_config.h"

namespace conclave::train {

// Of a resolved configuration: parallel.dp is there.
model::MemoryPlan memory_plan(const RunConfig& config);

}  // namespace conclave::train
