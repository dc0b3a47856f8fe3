// SPDX-License-Identifier: Apache-2.0
// Makes every matrix product of a model once on one thread and once on several, on this machine: the part of the
// promise of `reduction: canonical` that depends on the sizes. Attention is left out: it runs per sequence and head.
#pragma once

#include <string>

#include "model/model_shape.h"

namespace conclave::model {

// Which product, in micro-batches of `tokens` tokens, has other bits on `threads` threads than on one; empty if none
// has. Takes less time than a step. An expert's rows may be any multiple of 16: a few stand for all.
std::string thread_obstacle(const ModelShape& shape, int64_t tokens, int threads);

// Why `reduction: canonical` would not be bitwise on this machine for this model: kernels::canonical_obstacle of its
// products, then thread_obstacle. Empty if nothing was found.
std::string canonical_obstacle(const ModelShape& shape, int64_t tokens, int threads);

}  // namespace conclave::model
