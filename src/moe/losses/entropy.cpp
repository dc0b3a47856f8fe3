// SPDX-License-Identifier: Apache-2.0
// Entropy of the scores (HMoE, Wang et al. 2024, arXiv 2408.10681, after Huang et al. 2024, arXiv 2403.07652): L = coef
// · mean_t H(p_t), H(p) = −Σ_e p_e ln p_e, so that routing by top_p needs few experts. dz_j = −p_j (ln p_j + H).
#include <ATen/Parallel.h>

#include <cmath>

#include "moe/balance_loss.h"

namespace conclave::moe {
namespace {

class EntropyLoss : public AuxiliaryLoss {
 public:
  explicit EntropyLoss(const BalanceLoss& config) : coef_(config.coef) {}

  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override {
    const Decision& decision = *view.layers[layer];
    const RouterStatistics& s = decision.statistics;
    if (s.tokens() == 0) return;
    check(decision.choice.affinity == Affinity::kSoftmax, "the entropy is of a softmax");
    const double scale = coef_ * s.targets() / static_cast<double>(s.tokens());
    Tensor& dlogits = logits_gradient(decision.choice, gradients);
    by_dtype(dlogits, [&](auto zero) {
      using T = decltype(zero);
      const std::span<const T> probs = elements<T>(decision.choice.probs_TE);
      const auto dz = elements<T>(dlogits);
      const int64_t E = decision.choice.experts;
      at::parallel_for(0, view.batch.tokens_count(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          if (view.batch.segment_ids[t] >= 0) add_token<T>(probs.subspan(t * E, E), scale, dz.subspan(t * E, E));
      });
    });
  }

  double value(const LossView& view, int layer) const override {
    const RouterStatistics& s = view.layers[layer]->statistics;
    return s.tokens() > 0 ? s.entropy / static_cast<double>(s.tokens()) : 0.0;
  }

 private:
  template <typename T>
  static void add_token(std::span<const T> probs_E, double scale, std::span<T> dlogits_E) {
    const auto log_of = [](double p) { return p > 0 ? std::log(p) : 0.0; };
    double entropy = 0;
    for (const double p : probs_E) entropy -= p * log_of(p);
    for (size_t e = 0; e < probs_E.size(); ++e)
      dlogits_E[e] -= static_cast<T>(scale * probs_E[e] * (log_of(probs_E[e]) + entropy));
  }

  double coef_;
};

}  // namespace

AuxiliaryLoss::Row entropy_loss() {
  return {.type = LossType::kEntropy,
          .label = "ent",
          .what = "scores that are certain",
          .source = "Wang et al. 2024, arXiv 2408.10681",
          .equation = "coef * mean_t H(p_t)",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<EntropyLoss>(config);
          }};
}

}  // namespace conclave::moe
