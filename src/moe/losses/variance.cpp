// SPDX-License-Identifier: Apache-2.0
// Variance loss (Guo et al. 2025, arXiv 2505.22323): L = −coef · Σ_e 1/T Σ_t (w_te − w̄_e)², w the weights of the picks
// and zero elsewhere, w̄_e their mean over the micro-batch: tokens should differ in how much they want an expert. The
// mean may be taken as a constant: Σ_t (w_te − w̄_e) = 0, so what goes through it is nothing.
#include <ATen/ops/zeros_like.h>

#include "moe/balance_loss.h"

namespace conclave::moe {
namespace {

class VarianceLoss : public AuxiliaryLoss {
 public:
  explicit VarianceLoss(const BalanceLoss& config) : coef_(config.coef) {}

  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override {
    const Decision& decision = *view.layers[layer];
    const RouterStatistics& s = decision.statistics;
    if (s.tokens() == 0) return;
    const auto sums = sums_of(decision.choice, view.batch);
    const auto tokens = static_cast<double>(s.tokens());
    const double scale = -2 * coef_ * s.targets() / tokens;
    if (!gradients.weights_C.defined()) gradients.weights_C = at::zeros_like(decision.choice.weights_C);
    by_dtype(gradients.weights_C, [&](auto zero) {
      using T = decltype(zero);
      const auto dweights = elements<T>(gradients.weights_C);
      for_each_weight(decision.choice, view.batch, [&](int32_t pick, int32_t expert, double weight) {
        dweights[pick] += static_cast<T>(scale * (weight - sums.first[expert] / tokens));
      });
    });
  }

  double value(const LossView& view, int layer) const override {
    const Decision& decision = *view.layers[layer];
    const auto tokens = static_cast<double>(decision.statistics.tokens());
    if (tokens == 0) return 0;
    const auto sums = sums_of(decision.choice, view.batch);
    double variance = 0;
    for (int64_t e = 0; e < decision.choice.experts; ++e) {
      const double mean = sums.first[e] / tokens;
      variance += sums.squares[e] / tokens - mean * mean;
    }
    return -variance;
  }

 private:
  struct Sums {
    std::vector<double> first, squares;  // of each expert's weights
  };
  template <typename Body>
  static void for_each_weight(const Choice& choice, const Batch& batch, const Body& body) {
    by_dtype(choice.weights_C, [&](auto zero) {
      const auto weights = elements<decltype(zero)>(choice.weights_C);
      for (int64_t t = 0; t < choice.tokens(); ++t) {
        if (batch.segment_ids[t] < 0) continue;
        for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
          body(i, choice.picks.ids_C[i], static_cast<double>(weights[i]));
      }
    });
  }
  static Sums sums_of(const Choice& choice, const Batch& batch) {
    Sums sums{std::vector<double>(choice.experts, 0.0), std::vector<double>(choice.experts, 0.0)};
    for_each_weight(choice, batch, [&](int32_t, int32_t expert, double weight) {
      sums.first[expert] += weight;
      sums.squares[expert] += weight * weight;
    });
    return sums;
  }

  double coef_;
};

}  // namespace

AuxiliaryLoss::Row variance_loss() {
  return {.type = LossType::kVariance,
          .label = "var",
          .what = "tokens differ in how much they want an expert",
          .source = "Guo et al. 2025, arXiv 2505.22323",
          .equation = "- coef * sum_e mean_t (w_te - mean w_e)^2",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<VarianceLoss>(config);
          }};
}

}  // namespace conclave::moe
