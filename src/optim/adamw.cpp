// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include <ATen/ops/zeros_like.h>

#include "kernels/optimizer.h"

namespace conclave::optim {

AdamW::AdamW(const OptimConfig& config, const Tensor& parameters, const std::vector<Range>& ranges)
    : config_(config), m_(at::zeros_like(parameters)), v_(at::zeros_like(parameters)) {
  for (const auto& range : ranges) {
    if (!ranges_.empty() && ranges_.back().begin + ranges_.back().count == range.begin &&
        ranges_.back().decay == range.decay) {
      ranges_.back().count += range.count;
    } else {
      ranges_.push_back(range);
    }
  }
}

void AdamW::step(Tensor& parameters, const Tensor& gradients, const StepSize& size) {
  for (const auto& range : ranges_) {
    const auto part = [&](const Tensor& flat) { return flat.narrow(0, range.begin, range.count); };
    Tensor p = part(parameters), m = part(m_), v = part(v_);
    const kernels::AdamWStep step{.lr = size.lr,
                                  .beta1 = config_.betas[0],
                                  .beta2 = config_.betas[1],
                                  .eps = config_.eps,
                                  .weight_decay = range.decay ? config_.weight_decay : 0.0,
                                  .step = size.update,
                                  .grad_scale = size.grad_scale};
    kernels::adamw(p, m, v, part(gradients), step);
  }
}

}  // namespace conclave::optim
