// SPDX-License-Identifier: Apache-2.0
#include "moe/device_balance.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

namespace conclave::moe {
namespace {

bool first_choices_only(const BalanceLoss& loss, int64_t top_k) {
  return loss.convention == Convention::kSwitch || loss.convention == Convention::kGshard ||
         (loss.convention == Convention::kDeepspeed && top_k <= 2);
}

// Picks that a share is divided by.
double picks(const BalanceLoss& loss, int64_t top_k) {
  const bool per_choice = loss.convention == Convention::kMegatron || loss.convention == Convention::kDeepseek ||
                          (loss.convention == Convention::kDeepspeed && top_k > 2);
  return per_choice ? static_cast<double>(top_k) : 1.0;
}

}  // namespace

DeviceBalance::DeviceBalance(const BalanceConfig& config, int64_t top_k) : losses_(config.losses), top_k_(top_k) {
  for (const auto& loss : losses_)
    check(loss.type == LossType::kSwitch || loss.type == LossType::kZ, "a device knows the losses switch and z");
}

Tensor DeviceBalance::counts(const BalanceLoss& loss, const DeviceLossView& view, int layer) const {
  const bool first = first_choices_only(loss, top_k_);
  const auto of = [&](size_t l) {
    return (first ? view.layers[l]->first_BE : view.layers[l]->chosen_BE).to(at::kDouble);
  };
  if (loss.level == Level::kSequence) return of(layer);
  if (loss.level == Level::kGlobal) {
    const Tensor last = view.state.get(layer, "last_counts").to(at::kDouble), choices = last.sum();
    const double k = first ? 1.0 : static_cast<double>(top_k_);
    // No step yet: uniform.
    return at::where(choices.gt(0), last * k / choices.clamp_min(1), k / static_cast<double>(last.numel()))
        .unsqueeze(0);
  }
  if (loss.scope == Scope::kLayer) return of(layer).sum(0, true);
  Tensor sum = of(0).sum(0, true);
  for (size_t l = 1; l < view.layers.size(); ++l) sum = sum + of(l).sum(0, true);
  return sum;
}

Tensor DeviceBalance::switch_gradient(const BalanceLoss& loss, const DeviceLossView& view, int layer) const {
  const Tensor c = counts(loss, view, layer);
  const double scale = loss.coef * static_cast<double>(c.size(1)) / picks(loss, top_k_);
  if (loss.level == Level::kSequence) {
    const Tensor tokens = view.batch.counts_2B[0].unsqueeze(1), targets = view.batch.counts_2B[1].unsqueeze(1);
    return c * (scale * targets / tokens.square().clamp_min(1));  // a sequence without tokens has no counts
  }
  const double layers = loss.scope == Scope::kModel ? static_cast<double>(view.layers.size()) : 1.0;
  const double over = static_cast<double>(view.batch.tokens()) * layers;
  const double counted = loss.level == Level::kGlobal ? 1.0 : over;
  return c * (scale * view.batch.targets() / (counted * over));
}

void DeviceBalance::add_gradient(const DeviceLossView& view, int layer, kernels::RouteGradients& gradients) const {
  if (view.batch.tokens() == 0) return;
  Tensor sum;
  for (const auto& loss : losses_) {
    if (loss.type == LossType::kZ) {
      gradients.z_scale += 2 * loss.coef * view.batch.targets() / static_cast<double>(view.batch.tokens());
      continue;
    }
    const Tensor own = switch_gradient(loss, view, layer);
    sum = sum.defined() ? sum + own : own;
  }
  if (sum.defined()) gradients.affinity_BE = sum.expand({view.batch.counts_2B.size(1), -1}).contiguous();
}

}  // namespace conclave::moe
