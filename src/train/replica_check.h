// SPDX-License-Identifier: Apache-2.0
// Ranks that hold the same weights must hold the same bits: a flipped bit, or a sum that ranks made in different
// orders, would otherwise train on in silence.
#pragma once

#include "model/transformer.h"

namespace conclave::train {

// Compares hashes of every tensor among the ranks that hold copies of it: dense ones and the state of routing methods
// (bias, thresholds, counts) over dp, those that tensor-parallel ranks hold whole over tp too, experts over edp. Throws
// NumericError that names the first tensor and the ranks of the world that differ from most. Collective; reads the
// weights once.
void check_replicas(const model::Transformer& model);

}  // namespace conclave::train
