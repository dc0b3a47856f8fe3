// SPDX-License-Identifier: Apache-2.0
// Load loss (Shazeer et al. 2017, arXiv 1701.06538, equations 8 to 11): L = coef · CV²(Load), Load_e = Σ_t Φ((c_te −
// τ_te) / σ_te) the smooth count of tokens: the probability that e is among the k best when its noise alone is drawn
// again. τ_te is the k-th largest noisy logit of the other experts. Gradients flow through c, σ and the noisy logit
// that is τ. Without noise (evaluation, or k = E) the load is the count, and has no gradient.
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <numbers>

#include "kernels/softmax.h"
#include "moe/balance_loss.h"
#include "moe/losses/cv.h"

namespace conclave::moe {
namespace {

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double normal_density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi); }

class LoadLoss : public AuxiliaryLoss {
 public:
  explicit LoadLoss(const BalanceLoss& config) : coef_(config.coef) {}
  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override;
  bool reads_logits() const override { return true; }

  double value(const LossView& view, int layer) const override {
    return squared_variation(load(*view.layers[layer], view.batch)).value;
  }

 private:
  static bool smooth(const Decision& decision) {
    return decision.choice.deviation_TE.defined() && decision.statistics.top_k < decision.choice.experts;
  }
  static std::vector<double> load(const Decision& decision, const Batch& batch);
  // Calls body(token, expert, expert whose noisy logit is τ, (c − τ) / σ, σ).
  template <typename Body>
  static void for_each_expert(const Decision& decision, const Batch& batch, const Body& body);

  double coef_;
};

template <typename Body>
void LoadLoss::for_each_expert(const Decision& decision, const Batch& batch, const Body& body) {
  const Choice& choice = decision.choice;
  const int64_t E = choice.experts, k = decision.statistics.top_k;
  std::vector<int32_t> best(choice.tokens() * (k + 1));
  kernels::top_k_rows(choice.logits_TE, k + 1, best);
  by_dtype(choice.logits_TE, [&](auto zero) {
    using T = decltype(zero);
    const auto noisy = elements<T>(choice.logits_TE), clean = elements<T>(choice.clean_TE),
               deviation = elements<T>(choice.deviation_TE);
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      if (batch.segment_ids[t] < 0) continue;
      const int32_t* order = &best[t * (k + 1)];
      for (int64_t e = 0; e < E; ++e) {
        const bool chosen = std::find(order, order + k, e) != order + k;
        const int32_t other = order[chosen ? k : k - 1];
        const double sigma = deviation[t * E + e];
        body(t, e, other, (static_cast<double>(clean[t * E + e]) - noisy[t * E + other]) / sigma, sigma);
      }
    }
  });
}

std::vector<double> LoadLoss::load(const Decision& decision, const Batch& batch) {
  const auto& counts = decision.statistics.selected_E;
  std::vector<double> sums(counts.begin(), counts.end());
  if (!smooth(decision)) return sums;
  std::fill(sums.begin(), sums.end(), 0.0);
  for_each_expert(decision, batch,
                  [&](int64_t, int64_t e, int32_t, double distance, double) { sums[e] += normal_cdf(distance); });
  return sums;
}

void LoadLoss::add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const {
  const Decision& decision = *view.layers[layer];
  if (!smooth(decision)) return;
  const Choice& choice = decision.choice;
  const auto variation = squared_variation(load(decision, view.batch));
  const double weight = coef_ * decision.statistics.targets();
  for (Tensor* gradient : {&gradients.clean_TE, &gradients.deviation_TE})
    if (!gradient->defined()) *gradient = at::zeros_like(choice.clean_TE);
  const int64_t E = choice.experts;
  by_dtype(choice.clean_TE, [&](auto zero) {
    using T = decltype(zero);
    const auto dclean = elements<T>(gradients.clean_TE), ddeviation = elements<T>(gradients.deviation_TE),
               dlogits = elements<T>(logits_gradient(choice, gradients));
    for_each_expert(decision, view.batch, [&](int64_t t, int64_t e, int32_t other, double distance, double sigma) {
      const double slope = weight * variation.gradient[e] * normal_density(distance) / sigma;
      dclean[t * E + e] += static_cast<T>(slope);
      dlogits[t * E + other] -= static_cast<T>(slope);
      ddeviation[t * E + e] -= static_cast<T>(slope * distance);
    });
  });
}

}  // namespace

AuxiliaryLoss::Row load_loss() {
  return {.type = LossType::kLoad,
          .label = "load",
          .what = "experts get equal smooth counts of tokens",
          .source = "Shazeer et al. 2017, arXiv 1701.06538",
          .equation = "coef * CV(sum_t Phi((c_te - tau_te) / sigma_te))^2",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<LoadLoss>(config);
          }};
}

}  // namespace conclave::moe
