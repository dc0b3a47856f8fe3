// SPDX-License-Identifier: Apache-2.0
// Cross entropy of one chunk of logits and, in place, its gradient. Float or double. Sums are not divided here: the
// step divides once by the number of valid tokens of the global batch.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace conclave::kernels {

// loss[i] = mask[i] * (logsumexp(logits[i]) - logits[i][targets[i]]). With `gradient` the logits become their gradient,
// mask[i] * (softmax - one_hot); without it they keep their values. Where mask[i] is 0 the target may be anything, and
// loss and gradient are exactly 0 even if the logits are not finite.
void cross_entropy_rows(Tensor& logits_NV, std::span<const int32_t> targets, std::span<const float> mask, bool gradient,
                        Tensor& loss_N);

}  // namespace conclave::kernels
