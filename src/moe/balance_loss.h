// SPDX-License-Identifier: Apache-2.0
// One auxiliary loss. Statistics are collected in forward; gradients are injected into the router's backward, when the
// decisions of every layer are known. One file per loss in losses/, one row in the table in balancer.cpp; formulas and
// scales: docs/moe.md.
//
// Weighting (contract): the value belongs to a micro-batch (or sequence); its gradient is multiplied by that
// micro-batch's (sequence's) count of targets, so that after the one division by all targets it is weighted by its
// share.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "moe/decision.h"
#include "moe/method.h"
#include "moe/method_state.h"
#include "moe/moe_config.h"
#include "moe/step_totals.h"

namespace conclave::moe {

// All MoE layers of one micro-batch, in layer order.
struct LossView {
  std::span<const Decision* const> layers;
  const ModelState& state;
  const Batch& batch;
  std::span<const double> relative_widths = {};  // of each expert, by their mean; empty = all are equally wide
};

// What a view has of the widths of moe.expert_hidden_size; empty where it gives one for all.
std::vector<double> relative_widths(const MoeConfig& config);

class AuxiliaryLoss {
 public:
  virtual ~AuxiliaryLoss() = default;
  // Adds the gradient with respect to the choice of `layer`.
  virtual void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const = 0;
  // Without its coefficient, for this micro-batch and layer (scope model: for the whole model).
  virtual double value(const LossView& view, int layer) const = 0;
  // `experts` of each MoE layer.
  virtual void declare(std::span<const int64_t>, ModelState&) const {}
  // Whether add_gradient reads logits_TE of a choice.
  virtual bool reads_logits() const { return false; }
  // Once after each update, with the figures of the whole global batch for each layer.
  virtual void end_step(std::span<const StepTotals>, ModelState&) const {}
  // What a loss with a coefficient of its own multiplies by now.
  virtual std::optional<double> coefficient(const ModelState&) const { return std::nullopt; }

  struct Row {
    LossType type;
    std::string_view label;  // on the console
    std::string_view what, source, equation;
    std::unique_ptr<AuxiliaryLoss> (*make)(const BalanceLoss& config);
    // Of BalanceLoss, those that mean something to it.
    std::vector<std::string_view> keys = {"coef"};
  };
  static std::span<const Row> table();
  static const Row& row(LossType type);
};

// gradients.logits_TE, made where it is not there yet.
Tensor& logits_gradient(const Choice& choice, ChoiceGradients& gradients);

// d logits += what follows from d affinity, [E] for each sequence and equal for its tokens that are not padding.
void add_affinity_gradient(const Choice& choice, const Batch& batch, std::span<const std::vector<double>> gradients_BE,
                           Tensor& dlogits_TE);

}  // namespace conclave::moe
