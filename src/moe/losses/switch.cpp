// SPDX-License-Identifier: Apache-2.0
// Load-balancing loss of Switch and its relatives (methods.md 0.5): L = coef · Σ_e a_e P_e, P_e the mean affinity, a_e
// the convention's scaled share of choices, a constant for the gradient. Levels: counts of the micro-batch, of each
// sequence (DeepSeek-V3), or of the last step over all ranks.
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "moe/balance_loss.h"

namespace conclave::moe {
namespace {

// Counts over one sequence, or over all (`sequence` < 0).
template <typename T>
std::vector<double> sum_rows(const std::vector<T>& values_BE, const RouterStatistics& s, int64_t sequence) {
  std::vector<double> sum(s.experts, 0.0);
  for (int64_t b = 0; b < s.sequences; ++b) {
    if (sequence >= 0 && b != sequence) continue;
    for (int64_t e = 0; e < s.experts; ++e) sum[e] += static_cast<double>(values_BE[b * s.experts + e]);
  }
  return sum;
}

double tokens_of(const RouterStatistics& s, int64_t sequence) {
  return static_cast<double>(sequence < 0 ? s.tokens() : s.tokens_B[sequence]);
}

class SwitchLoss : public AuxiliaryLoss {
 public:
  explicit SwitchLoss(const BalanceLoss& config) : config_(config) {}
  void add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const override;
  double value(const LossView& view, int layer) const override;
  void declare(std::span<const int64_t> experts, ModelState& state) const override;
  void end_step(std::span<const StepTotals> layers, ModelState& state) const override;

 private:
  bool first_choices_only(int64_t top_k) const {
    return config_.convention == Convention::kSwitch || config_.convention == Convention::kGshard ||
           (config_.convention == Convention::kDeepspeed && top_k <= 2);
  }
  bool by_sequence() const { return config_.level == Level::kSequence; }
  // a_e of one sequence (level sequence) or the micro-batch (`sequence` < 0).
  std::vector<double> shares(const LossView& view, int layer, int64_t sequence) const;
  void add_counts(const RouterStatistics& s, const MethodState& state, int64_t sequence,
                  std::vector<double>& counts_E) const;
  // Tokens that the means are over: of the layer, or of all layers.
  double tokens(const LossView& view, int layer, int64_t sequence) const;
  double mean_product(const LossView& view, int layer, int64_t sequence) const;

  BalanceLoss config_;
};

void SwitchLoss::add_counts(const RouterStatistics& s, const MethodState& state, int64_t sequence,
                            std::vector<double>& counts_E) const {
  const bool first = first_choices_only(s.top_k);
  auto counts = sum_rows(first ? s.first_BE : s.chosen_BE, s, sequence);
  if (config_.level == Level::kGlobal) {
    const auto last = state.values<int64_t>("last_counts");
    const auto choices = static_cast<double>(std::accumulate(last.begin(), last.end(), int64_t{0}));
    const double k = first ? 1.0 : static_cast<double>(s.top_k);
    for (int64_t e = 0; e < s.experts; ++e)
      counts[e] = choices > 0 ? static_cast<double>(last[e]) * k / choices : k / static_cast<double>(s.experts);
  }
  counts_E.resize(s.experts, 0.0);
  for (int64_t e = 0; e < s.experts; ++e) counts_E[e] += counts[e];
}

double SwitchLoss::tokens(const LossView& view, int layer, int64_t sequence) const {
  if (config_.scope == Scope::kLayer) return tokens_of(view.layers[layer]->statistics, sequence);
  double sum = 0;
  for (const Decision* other : view.layers) sum += tokens_of(other->statistics, sequence);
  return sum;
}

std::vector<double> SwitchLoss::shares(const LossView& view, int layer, int64_t sequence) const {
  const RouterStatistics& own = view.layers[layer]->statistics;
  std::vector<double> counts;
  double counted = 0;  // tokens that the counts are over
  for (size_t l = 0; l < view.layers.size(); ++l) {
    if (config_.scope == Scope::kLayer && static_cast<int>(l) != layer) continue;
    const RouterStatistics& s = view.layers[l]->statistics;
    add_counts(s, view.state.layers[l], sequence, counts);
    counted += config_.level == Level::kGlobal ? 1.0 : tokens_of(s, sequence);
  }
  const bool per_choice = config_.convention == Convention::kMegatron || config_.convention == Convention::kDeepseek ||
                          (config_.convention == Convention::kDeepspeed && own.top_k > 2);
  const auto home = counts.end() - own.home.count;
  if (own.home.pooled && own.home.count > 0)
    std::fill(home, counts.end(), std::accumulate(home, counts.end(), 0.0) / static_cast<double>(own.home.count));
  // All choices; of counts that are shares of a last step there are k, of others as many as tokens made.
  const double choices = config_.level == Level::kGlobal ? static_cast<double>(own.top_k)
                                                         : std::accumulate(counts.begin(), counts.end(), 0.0);
  const double over = per_choice ? choices : counted;
  std::vector<double> a(own.experts, 0.0);
  for (int64_t e = 0; e < own.experts && over > 0; ++e) a[e] = static_cast<double>(own.experts) * counts[e] / over;
  for (int64_t e = own.experts - own.home.count; e < own.experts; ++e) a[e] *= own.home.balance;
  return a;
}

void SwitchLoss::add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const {
  const Decision& decision = *view.layers[layer];
  const RouterStatistics& s = decision.statistics;
  std::vector<std::vector<double>> affinity(s.sequences, std::vector<double>(s.experts, 0.0));
  for (int64_t b = 0; b < s.sequences; ++b) {
    const int64_t sequence = by_sequence() ? b : -1;
    const double over = tokens(view, layer, sequence), weight = by_sequence() ? s.targets_B[b] : s.targets();
    if (over == 0) continue;
    const auto a = shares(view, layer, sequence);
    for (int64_t e = 0; e < s.experts; ++e) affinity[b][e] = config_.coef * weight * a[e] / over;
  }
  add_affinity_gradient(decision.choice, view.batch, affinity, logits_gradient(decision.choice, gradients));
}

double SwitchLoss::mean_product(const LossView& view, int layer, int64_t sequence) const {
  const auto a = shares(view, layer, sequence);
  std::vector<double> affinity(a.size(), 0.0);
  for (size_t l = 0; l < view.layers.size(); ++l) {
    if (config_.scope == Scope::kLayer && static_cast<int>(l) != layer) continue;
    const RouterStatistics& s = view.layers[l]->statistics;
    const auto sum = sum_rows(s.affinity_BE, s, sequence);
    for (size_t e = 0; e < a.size(); ++e) affinity[e] += sum[e];
  }
  const double over = tokens(view, layer, sequence);
  return over > 0 ? std::inner_product(a.begin(), a.end(), affinity.begin(), 0.0) / over : 0.0;
}

double SwitchLoss::value(const LossView& view, int layer) const {
  const RouterStatistics& s = view.layers[layer]->statistics;
  if (s.tokens() == 0) return 0;
  if (!by_sequence()) return mean_product(view, layer, -1);
  double sum = 0, weights = 0;
  for (int64_t b = 0; b < s.sequences; ++b)
    sum += s.targets_B[b] * mean_product(view, layer, b), weights += s.targets_B[b];
  return weights > 0 ? sum / weights : 0.0;
}

void SwitchLoss::declare(std::span<const int64_t> experts, ModelState& state) const {
  if (config_.level != Level::kGlobal) return;
  for (size_t l = 0; l < experts.size(); ++l)
    if (!state.layers[l].has("last_counts"))
      state.layers[l].declare("last_counts", at::zeros({experts[l]}, at::kLong));  // zeros: no step yet
}

void SwitchLoss::end_step(std::span<const StepTotals> layers, ModelState& state) const {
  if (config_.level != Level::kGlobal) return;
  for (size_t l = 0; l < layers.size(); ++l)
    std::copy(layers[l].chosen_E.begin(), layers[l].chosen_E.end(),
              state.layers[l].values<int64_t>("last_counts").begin());
}

}  // namespace

AuxiliaryLoss::Row switch_loss() {
  return {.type = LossType::kSwitch,
          .label = "lb",
          .what = "load balance by counts and mean scores",
          .source = "Fedus et al. 2021, arXiv 2101.03961, and relatives",
          .equation = "coef * sum_e a_e P_e, a_e = E c_e / sum c",
          .make = [](const BalanceLoss& config) -> std::unique_ptr<AuxiliaryLoss> {
            return std::make_unique<SwitchLoss>(config);
          },
          .keys = {"coef", "level", "convention", "scope"}};
}

}  // namespace conclave::moe
