// SPDX-License-Identifier: Apache-2.0
// Learning rate as a pure function of the step: linear warm-up from 0 to lr, then cosine, linear, constant, or
// warm-up-stable-decay (Hu et al. 2024) down to min_lr. Nothing to save.
#pragma once

#include "optim/optim_config.h"

namespace conclave::optim {

// `step` counts from 0; the first step already uses lr / warmup, the last one min_lr.
double learning_rate(const OptimConfig& config, int64_t total_steps, int64_t step);

}  // namespace conclave::optim
