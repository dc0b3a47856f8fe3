// SPDX-License-Identifier: Apache-2.0
// Importance loss (Shazeer et al. 2017, arXiv 1701.06538, equations 6 and 7): L = coef · CV²(Imp), Imp_e the sum of an
// expert's weights over the tokens of the micro-batch that are not padding, before drops.
#include <ATen/ops/zeros_like.h>

#include "moe/balance_loss.h"
#include "moe/losses/cv.h"

namespace conclave::moe {
namespace {

class ImportanceLoss : public AuxiliaryLoss {
 public:
  explicit ImportanceLoss(const BalanceLoss& config) : coef_(config.coef) {}

  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override {
    const Decision& decision = *view.layers[layer];
    const Choice& choice = decision.choice;
    const double weight = coef_ * decision.statistics.targets();
    const auto variation = squared_variation(importance(choice, view.batch));
    if (!gradients.weights_C.defined()) gradients.weights_C = at::zeros_like(choice.weights_C);
    by_dtype(gradients.weights_C, [&](auto zero) {
      using T = decltype(zero);
      const auto dweights = elements<T>(gradients.weights_C);
      for_each_real_pick(choice, view.batch, [&](int32_t i, int32_t expert) {
        dweights[i] += static_cast<T>(weight * variation.gradient[expert]);
      });
    });
  }

  double value(const LossView& view, int layer) const override {
    return squared_variation(importance(view.layers[layer]->choice, view.batch)).value;
  }

 private:
  template <typename Body>
  static void for_each_real_pick(const Choice& choice, const Batch& batch, const Body& body) {
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      if (batch.segment_ids[t] < 0) continue;
      for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
        body(i, choice.picks.ids_C[i]);
    }
  }
  static std::vector<double> importance(const Choice& choice, const Batch& batch) {
    std::vector<double> sums(choice.experts, 0.0);
    by_dtype(choice.weights_C, [&](auto zero) {
      const auto weights = elements<decltype(zero)>(choice.weights_C);
      for_each_real_pick(choice, batch, [&](int32_t i, int32_t expert) { sums[expert] += weights[i]; });
    });
    return sums;
  }

  double coef_;
};

}  // namespace

AuxiliaryLoss::Row importance_loss() {
  return {.type = LossType::kImportance,
          .label = "imp",
          .what = "experts get equal sums of weights",
          .source = "Shazeer et al. 2017, arXiv 1701.06538",
          .equation = "coef * CV(sum_t w_te)^2",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<ImportanceLoss>(config);
          }};
}

}  // namespace conclave::moe
