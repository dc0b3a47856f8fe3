// SPDX-License-Identifier: Apache-2.0
// Gradients of the device path: two flat buffers on the device, which all micro-batches of a step add to, and which the
// transport sums over the ranks with the same weights at the end of a step, not bucket by bucket. Every rank gets all
// sums.
#pragma once

#include <memory>

#include "nn/parameters.h"
#include "parallel/gradient_reducer.h"

namespace conclave::train {

// Buffers like the parameters'; spans of the result point to memory of the device. `dp` and `edp` are the ranks with
// the same dense weights and the same experts.
std::unique_ptr<parallel::GradientReducer<float>> make_device_reducer(const nn::Parameters& parameters,
                                                                      const comm::Group& dp, const comm::Group& edp);

}  // namespace conclave::train
