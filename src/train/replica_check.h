// SPDX-License-Identifier: Apache-2.0
// Ranks that hold the same weights must hold the same bits: a flipped bit, or a sum that ranks made in different
// orders, would otherwise train on in silence.
#pragma once

#include <string>

#include "model/transformer.h"

namespace conclave::train {

// Compares hashes of every tensor among the ranks that hold copies of it: dense ones and the state of routing methods
// (bias, thresholds, counts) over dp, those that tensor-parallel ranks hold whole over tp too, experts over edp. Names
// the first tensor and the ranks of the world that differ from most; empty where all are equal, and on ranks that hold
// none of what differs. Collective; reads the weights once. They must have arrived (TrainStep::await_weights).
std::string unequal_copies(const model::Transformer& model);

// Throws NumericError where copies differ.
void check_replicas(const model::Transformer& model);

}  // namespace conclave::train
