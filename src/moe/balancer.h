// SPDX-License-Identifier: Apache-2.0
// What keeps experts evenly used: the auxiliary losses of the configuration, and the loss-free bias (Wang et al. 2024,
// arXiv 2408.15664) that routers add to the scores for the selection only.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "moe/balance_loss.h"

namespace conclave::moe {

class Balancer {
 public:
  explicit Balancer(const BalanceConfig& config);

  // The state that the losses and the bias need; `experts` of each MoE layer.
  void declare(std::span<const int64_t> experts, ModelState& state) const;
  // Adds the gradient of every loss with respect to the choice of `layer`.
  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const;
  // Whether any of them reads logits_TE of a choice in backward.
  bool reads_logits() const;
  // Of loss `index`, without its coefficient.
  double value(const LossView& view, int index, int layer) const { return losses_[index]->value(view, layer); }
  // Once per optimizer step, with the choices of the whole global batch.
  void end_step(std::span<const StepTotals> layers, ModelState& state) const;

  // Of each loss that moves it by itself, as it is now.
  std::vector<std::optional<double>> coefficients(const ModelState& state) const;

  const std::vector<BalanceLoss>& losses() const { return config_.losses; }

 private:
  BalanceConfig config_;
  std::vector<std::unique_ptr<AuxiliaryLoss>> losses_;
};

// One step of the loss-free bias: b += u·sign(mean c − c), or in proportion, with the choices c of the global batch.
void move_bias(const BiasConfig& config, std::span<const int64_t> selected_E, std::span<float> bias_E);

}  // namespace conclave::moe
