// SPDX-License-Identifier: Apache-2.0
// Gradients of the device path: two flat buffers on the device, which all micro-batches of a step add to, and which are
// summed over the ranks with the same weights at the end of a step, not beside backward. Every rank gets the sums of
// what it owns.
#pragma once

#include <memory>

#include "model/gradient_norm.h"
#include "parallel/gradient_reducer.h"

namespace conclave::train {

// Buffers like the parameters'; spans of the result point to memory of the device. `mesh`'s dp and edp are the ranks
// with the same dense weights and the same experts. What several ranks own parts of is summed by its owner, in rank
// order, bucket by bucket; what every rank owns, by the transport.
std::unique_ptr<parallel::GradientReducer<float>> make_device_reducer(const nn::Parameters& parameters,
                                                                      const parallel::Mesh& mesh,
                                                                      const model::Ownership& owned);

// Sums of the squares of the gradients that a rank owns.
struct OwnSquares {
  double dense = 0, expert = 0;
};
// The norm of all gradients, each element once. `sharded`: ranks with the same weights own parts of them. Equal on all
// ranks. Collective over the mesh's world.
double joined_norm(const OwnSquares& own, const parallel::Mesh& mesh, bool sharded);

}  // namespace conclave::train
