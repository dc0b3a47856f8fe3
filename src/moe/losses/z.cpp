// SPDX-License-Identifier: Apache-2.0
// Router z-loss (Zoph et al. 2022, ST-MoE): L = coef · mean_t (logsumexp_e z_te)², which keeps logits small; its
// gradient is 2·coef/T · lse_t · softmax(z_t), whatever the scores are made by.
#include <ATen/Parallel.h>

#include <cmath>

#include "moe/balance_loss.h"

namespace conclave::moe {
namespace {

class ZLoss : public AuxiliaryLoss {
 public:
  explicit ZLoss(const BalanceLoss& config) : coef_(config.coef) {}

  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override {
    const Decision& decision = *view.layers[layer];
    const RouterStatistics& s = decision.statistics;
    if (s.tokens() == 0) return;
    const Choice& choice = decision.choice;
    const double scale = 2 * coef_ * s.targets() / static_cast<double>(s.tokens());
    Tensor& dlogits = logits_gradient(choice, gradients);
    by_dtype(dlogits, [&](auto zero) {
      using T = decltype(zero);
      const auto logits = elements<T>(choice.logits_TE), lse = elements<T>(choice.lse_T), dz = elements<T>(dlogits);
      const int64_t E = choice.experts;
      at::parallel_for(0, view.batch.tokens_count(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          if (view.batch.segment_ids[t] < 0) continue;
          for (int64_t i = t * E; i < (t + 1) * E; ++i)
            dz[i] += static_cast<T>(scale * lse[t] * std::exp(static_cast<double>(logits[i]) - lse[t]));
        }
      });
    });
  }

  bool reads_logits() const override { return true; }

  double value(const LossView& view, int layer) const override {
    const RouterStatistics& s = view.layers[layer]->statistics;
    return s.tokens() > 0 ? s.lse_squared / static_cast<double>(s.tokens()) : 0.0;
  }

 private:
  double coef_;
};

}  // namespace

AuxiliaryLoss::Row z_loss() {
  return {.type = LossType::kZ,
          .label = "rz",
          .what = "keeps logits small",
          .source = "Zoph et al. 2022, arXiv 2202.08906",
          .equation = "coef * mean_t (logsumexp_e z_te)^2",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<ZLoss>(config);
          }};
}

}  // namespace conclave::moe
