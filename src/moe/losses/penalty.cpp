// SPDX-License-Identifier: Apache-2.0
// P-penalty of HMoE (Wang et al. 2024, arXiv 2408.10681): L = coef · E · Σ_e M_e P_e, M_e = 1/T Σ_t 1[e ∈ S_t] h_e, P_e
// the mean affinity, h_e the width of expert e by the mean of the layer: wide experts must earn the tokens they get, or
// narrow ones would stay unused. With equal widths h = 1, and it is the switch loss of convention huggingface.
#include "moe/losses/share_loss.h"

namespace conclave::moe {
namespace {

class PenaltyLoss : public ShareLoss {
 public:
  explicit PenaltyLoss(const BalanceLoss& config) : ShareLoss(config.coef) {}

 private:
  std::vector<double> shares(const LossView& view, int layer) const override {
    const RouterStatistics& s = view.layers[layer]->statistics;
    check(view.relative_widths.empty() || std::ssize(view.relative_widths) == s.experts, "a width for each expert");
    std::vector<int64_t> counts(s.experts, 0);
    for (size_t i = 0; i < s.chosen_BE.size(); ++i) counts[i % counts.size()] += s.chosen_BE[i];
    std::vector<double> a(s.experts);
    for (int64_t e = 0; e < s.experts; ++e) {
      const double width = view.relative_widths.empty() ? 1.0 : view.relative_widths[e];
      a[e] = width * static_cast<double>(s.experts * counts[e]) / static_cast<double>(s.tokens());
    }
    return a;
  }
};

}  // namespace

AuxiliaryLoss::Row penalty_loss() {
  return {.type = LossType::kPenalty,
          .label = "pen",
          .what = "load balance in which a wide expert costs more",
          .source = "Wang et al. 2024, arXiv 2408.10681",
          .equation = "coef * E * sum_e h_e c_e/T P_e, h_e the width by the mean one",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<PenaltyLoss>(config);
          }};
}

}  // namespace conclave::moe
