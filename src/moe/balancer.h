// SPDX-License-Identifier: Apache-2.0
// Auxiliary losses and loss-free balancing. Statistics are collected in forward; the gradient is injected into the
// logits in the router's backward, when the statistics of every layer are known. Formulas and scales: docs/moe.md.
//
//   switch:  L = coef · Σ_e a_e P_e, P_e the mean affinity, a_e the convention's scaled share of choices (methods.md
//   0.5) z:       L = coef · mean_t (logsumexp_e z_te)²                                            (Zoph et al. 2022)
//
// Weighting (contract): the value belongs to a micro-batch (or sequence); its gradient is multiplied by that
// micro-batch's (sequence's) count of targets, so that after the one division by all targets it is weighted by its
// share.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "moe/statistics.h"

namespace conclave::moe {

// State of one MoE layer's balancing across steps; in checkpoints, outside weight decay.
struct BalanceState {
  Tensor bias_E;                       // fp32; undefined when loss-free balancing is off
  std::vector<int64_t> last_counts_E;  // choices of the last step over all ranks (level global); empty before the first
};

class Balancer {
 public:
  explicit Balancer(const BalanceConfig& config, Score score) : config_(config), score_(score) {}

  // All MoE layers of one micro-batch, in layer order. `states` is parallel to it.
  struct View {
    std::span<const RouterStatistics* const> layers;
    std::span<const BalanceState> states;
  };
  // dlogits += the gradient of every loss with respect to the logits of `layer`.
  void add_logit_gradient(const View& view, int layer, const Choice& choice, const Batch& batch,
                          Tensor& dlogits_TE) const;
  // Value of loss `index` without its coefficient, for this micro-batch and layer (scope model: for the whole model).
  double value(const View& view, int index, int layer) const;
  const std::vector<BalanceLoss>& losses() const { return config_.losses; }

  // Once per optimizer step, with the choices of the whole global batch: moves the bias (Wang et al. 2024, 2408.15664:
  // b += u·sign(mean c − c)) and remembers the counts for level global.
  void end_step(std::span<const int64_t> selected_E, std::span<const int64_t> chosen_E, BalanceState& state) const;

 private:
  // a_e of the loss for one sequence (level sequence) or the micro-batch (`sequence` < 0).
  std::vector<double> shares(const BalanceLoss& loss, const View& view, int layer, int64_t sequence) const;
  // dL/d affinity of each token of a sequence, summed over the losses; [E].
  std::vector<double> affinity_gradient(const View& view, int layer, int64_t sequence) const;
  double z_gradient_scale(const RouterStatistics& statistics) const;

  BalanceConfig config_;
  Score score_;
};

}  // namespace conclave::moe
