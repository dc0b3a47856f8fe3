// SPDX-License-Identifier: Apache-2.0
// Made-up micro-batches for `conclave verify`: random tokens, documents that begin anywhere, some padding, so that
// every mask of a model matters. Functions of (seed, step, number), never of the layout.
#pragma once

#include "core/batch.h"
#include "train/run_config.h"

namespace conclave::verify {

// Micro-batch `number` of `step`, of config.train.micro_batch_size sequences. Every fourth sequence of a step ends in
// padding; documents are separated as data.document_mask says.
Batch micro_batch(const train::RunConfig& config, int64_t step, int64_t number);

}  // namespace conclave::verify
