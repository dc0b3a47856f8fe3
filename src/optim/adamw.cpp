// SPDX-License-Identifier: Apache-2.0
#include "optim/adamw.h"

#include <ATen/ops/zeros.h>

#include "kernels/optimizer.h"
#include "kernels/placement.h"

namespace conclave::optim {

AdamW::AdamW(const OptimConfig& config, const Tensor& parameters, int64_t owned, const std::vector<Range>& ranges)
    : config_(config), m_(at::zeros({owned}, parameters.options())), v_(at::zeros({owned}, parameters.options())) {
  const auto goes_on = [](const Range& range, const Range& next) {
    return range.begin + range.count == next.begin && range.at + range.count == next.at && range.decay == next.decay &&
           range.lr_scale == next.lr_scale;
  };
  for (const auto& range : ranges) {
    if (!ranges_.empty() && goes_on(ranges_.back(), range)) {
      ranges_.back().count += range.count;
    } else {
      ranges_.push_back(range);
    }
  }
  if (!kernels::on_device(parameters)) return;
  std::map<double, std::vector<kernels::AdamWRange>> blocks;
  for (const auto& range : ranges_) blocks[range.lr_scale].push_back({range.begin, range.at, range.count, range.decay});
  for (const auto& [lr_scale, of_scale] : blocks) blocks_[lr_scale] = kernels::adamw_blocks(of_scale, parameters);
}

void AdamW::step(Tensor& parameters, const Tensor& gradients, const StepSize& size, const Tensor& copy) {
  kernels::AdamWStep step{.lr = size.lr,
                          .beta1 = config_.betas[0],
                          .beta2 = config_.betas[1],
                          .eps = config_.eps,
                          .weight_decay = config_.weight_decay,
                          .step = size.update,
                          .grad_scale = size.grad_scale};
  // The decay that optim.lr alone would make.
  const auto scaled = [&](double lr_scale, double decay) {
    step.lr = size.lr * lr_scale;
    step.weight_decay = decay / lr_scale;
  };
  for (const auto& [lr_scale, blocks] : blocks_) {
    scaled(lr_scale, config_.weight_decay);
    kernels::adamw({.parameters = parameters, .m = m_, .v = v_, .gradients = gradients, .copy = copy}, blocks, step);
  }
  if (!blocks_.empty()) return;
  for (const auto& range : ranges_) {
    const auto part = [&](const Tensor& owned) { return owned.narrow(0, range.at, range.count); };
    Tensor p = parameters.narrow(0, range.begin, range.count), m = part(m_), v = part(v_);
    scaled(range.lr_scale, range.decay ? config_.weight_decay : 0.0);
    kernels::adamw(p, m, v, part(gradients), step);
    if (copy.defined()) copy.narrow(0, range.begin, range.count).copy_(p);
  }
}

}  // namespace conclave::optim
