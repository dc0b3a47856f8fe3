// SPDX-License-Identifier: Apache-2.0
#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace conclave::optim {

double learning_rate(const OptimConfig& config, int64_t total_steps, int64_t step) {
  const int64_t warmup = config.warmup.of(total_steps);
  if (step < warmup) return config.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (config.schedule == ScheduleType::kConstant) return config.lr;
  const int64_t after = total_steps - warmup;
  const int64_t usual = config.schedule == ScheduleType::kWsd ? std::max<int64_t>(1, total_steps / 10) : after;
  const int64_t decay = std::min(after, config.decay ? config.decay->of(total_steps) : usual);
  // wsd decays at the end of the run, the others right after warm-up.
  const int64_t start = config.schedule == ScheduleType::kWsd ? total_steps - decay : warmup;
  if (step < start) return config.lr;
  const double progress =
      decay <= 1 ? 1.0 : std::min(1.0, static_cast<double>(step - start) / static_cast<double>(decay - 1));
  const double remaining =
      config.schedule == ScheduleType::kCosine ? 0.5 * (1.0 + std::cos(std::numbers::pi * progress)) : 1.0 - progress;
  return config.min_lr + (config.lr - config.min_lr) * remaining;
}

}  // namespace conclave::optim
