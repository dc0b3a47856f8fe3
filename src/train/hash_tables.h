// SPDX-License-Identifier: Apache-2.0
// What the tables of hash layers (moe/hash_tables.h) are made of when a run begins: frequencies of the run's first
// tokens (moe.router.hash.table balanced), or embeddings of an earlier run (clustered, dispersed). Afterwards a table
// is state: a resume and an evaluation read it from the checkpoint.
#pragma once

#include "core/log.h"
#include "data/batch_loader.h"
#include "model/transformer.h"
#include "train/run_config.h"

namespace conclave::train {

// Writes the tables of a fresh `model`, the same in all layers with equally many experts; nothing to do for others.
// Rank 0 makes them. Collective. Throws ConfigError or NoCheckpointError on all ranks where embeddings cannot be had.
void make_hash_tables(const RunConfig& config, const data::BatchLoader& batches, model::Transformer& model, Log& log);

// Throws ConfigError unless moe.router.hash.embeddings, where it is given, names a run that this one can take them
// from: what can be told without reading tensors. Not collective. A run that goes on needs it no more, so loading a
// configuration does not ask.
void require_embeddings(const RunConfig& config);

}  // namespace conclave::train
