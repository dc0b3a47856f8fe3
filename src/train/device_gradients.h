// SPDX-License-Identifier: Apache-2.0
// Gradients of the device path on one rank: two flat buffers on the device, which all micro-batches of a step add to.
// Nothing travels, so a bucket is complete when the last micro-batch is done, and sums are what was added.
#pragma once

#include <memory>

#include "core/tensor.h"
#include "parallel/gradient_reducer.h"

namespace conclave::train {

// Spans of the result point to memory of the device.
std::unique_ptr<parallel::GradientReducer<float>> make_device_reducer(const Tensor& dense_parameters,
                                                                      const Tensor& expert_parameters);

}  // namespace conclave::train
