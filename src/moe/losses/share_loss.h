// SPDX-License-Identifier: Apache-2.0
// A loss L = coef · Σ_e a_e P_e over a micro-batch, P_e the mean affinity and a_e a constant for the gradient: what
// differs between such losses is how a_e is counted.
#pragma once

#include <numeric>

#include "moe/balance_loss.h"

namespace conclave::moe {

class ShareLoss : public AuxiliaryLoss {
 public:
  explicit ShareLoss(double coef) : coef_(coef) {}

  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override {
    const Decision& decision = *view.layers[layer];
    const RouterStatistics& s = decision.statistics;
    if (s.tokens() == 0) return;
    auto a = shares(view, layer);
    for (double& share : a) share *= coef_ * s.targets() / static_cast<double>(s.tokens());
    const std::vector<std::vector<double>> affinity(s.sequences, a);
    add_affinity_gradient(decision.choice, view.batch, affinity, logits_gradient(decision.choice, gradients));
  }
  double value(const LossView& view, int layer) const override {
    const RouterStatistics& s = view.layers[layer]->statistics;
    if (s.tokens() == 0) return 0;
    const auto a = shares(view, layer);
    double sum = 0;
    for (size_t i = 0; i < s.affinity_BE.size(); ++i) sum += a[i % a.size()] * s.affinity_BE[i];
    return sum / static_cast<double>(s.tokens());
  }

 protected:
  // a_e of a micro-batch that has tokens.
  virtual std::vector<double> shares(const LossView& view, int layer) const = 0;

 private:
  double coef_;
};

}  // namespace conclave::moe
