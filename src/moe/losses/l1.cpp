// SPDX-License-Identifier: Apache-2.0
// Sparsity of ReMoE (Wang et al. 2024, arXiv 2412.14711): L = λ/(L·T) Σ_{layers, tokens} Σ_e f_e R_e, R the weights,
// f_e = E/(k·T)·N_e the expert's share of the picks (1 without `balance`), a constant for the gradient. λ starts at
// `start` and is multiplied or divided by `rate` after each step in which the model used more or fewer experts than k
// for each token; with exactly as many it stays (the paper's sign; its code divides). λ is kept as a count of steps up
// minus steps down, so that it is the same number on all ranks and after a resume.
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <numeric>

#include "moe/balance_loss.h"

namespace conclave::moe {
namespace {

constexpr const char* kExponent = "l1.exponent";

class L1Loss : public AuxiliaryLoss {
 public:
  explicit L1Loss(const BalanceLoss& config) : config_(config.l1.value_or(L1Config())) {}
  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override;
  double value(const LossView& view, int layer) const override;
  void declare(std::span<const int64_t>, ModelState& state) const override {
    state.shared.declare(kExponent, at::zeros({1}, at::kLong));
  }
  void end_step(std::span<const StepTotals> layers, ModelState& state) const override;
  std::optional<double> coefficient(const ModelState& state) const override { return lambda(state); }

 private:
  double lambda(const ModelState& state) const {
    return config_.start * std::pow(config_.rate, static_cast<double>(state.shared.values<int64_t>(kExponent)[0]));
  }
  // f_e
  std::vector<double> shares(const RouterStatistics& s) const;

  L1Config config_;
};

std::vector<double> L1Loss::shares(const RouterStatistics& s) const {
  std::vector<double> f(s.experts, 1.0);
  if (!config_.balance) return f;
  const double scale = static_cast<double>(s.experts) / static_cast<double>(s.top_k * s.tokens());
  for (int64_t e = 0; e < s.experts; ++e) f[e] = scale * static_cast<double>(s.selected_E[e]);
  return f;
}

void L1Loss::add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const {
  const Decision& decision = *view.layers[layer];
  const RouterStatistics& s = decision.statistics;
  if (s.tokens() == 0) return;
  const auto layers = static_cast<double>(view.layers.size());
  const double scale = lambda(view.state) * s.targets() / (layers * static_cast<double>(s.tokens()));
  const auto f = shares(s);
  const Picks& picks = decision.choice.picks;
  if (!gradients.weights_C.defined()) gradients.weights_C = at::zeros_like(decision.choice.weights_C);
  by_dtype(gradients.weights_C, [&](auto zero) {
    using T = decltype(zero);
    const auto dweights = elements<T>(gradients.weights_C);
    for (int64_t t = 0; t < picks.tokens(); ++t) {
      if (view.batch.segment_ids[t] < 0) continue;
      for (int32_t i = picks.offsets_T1[t]; i < picks.offsets_T1[t + 1]; ++i)
        dweights[i] += static_cast<T>(scale * f[picks.ids_C[i]]);
    }
  });
}

double L1Loss::value(const LossView& view, int layer) const {
  const Decision& decision = *view.layers[layer];
  const RouterStatistics& s = decision.statistics;
  if (s.tokens() == 0) return 0;
  const auto f = shares(s);
  const Picks& picks = decision.choice.picks;
  double sum = 0;
  by_dtype(decision.choice.weights_C, [&](auto zero) {
    const auto weights = elements<decltype(zero)>(decision.choice.weights_C);
    for (int64_t t = 0; t < picks.tokens(); ++t) {
      if (view.batch.segment_ids[t] < 0) continue;
      for (int32_t i = picks.offsets_T1[t]; i < picks.offsets_T1[t + 1]; ++i) sum += f[picks.ids_C[i]] * weights[i];
    }
  });
  return sum / static_cast<double>(s.tokens());
}

void L1Loss::end_step(std::span<const StepTotals> layers, ModelState& state) const {
  int64_t excess = 0;  // picks beyond k for each token
  for (const StepTotals& t : layers)
    excess += std::accumulate(t.selected_E.begin(), t.selected_E.end(), int64_t{0}) - t.top_k * t.tokens;
  state.shared.values<int64_t>(kExponent)[0] += excess > 0 ? 1 : excess < 0 ? -1 : 0;
}

}  // namespace

AuxiliaryLoss::Row l1_loss() {
  return {.type = LossType::kL1,
          .label = "l1",
          .what = "steers the number of experts with a positive weight to k",
          .source = "Wang et al. 2024, arXiv 2412.14711",
          .equation = "lambda / (L T) sum f_e R_e; lambda *= rate^sign(S* - S)",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<L1Loss>(config);
          },
          .keys = {}};
}

}  // namespace conclave::moe
