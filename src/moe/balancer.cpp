// SPDX-License-Identifier: Apache-2.0
#include "moe/balancer.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

namespace conclave::moe {

Balancer::Balancer(const BalanceConfig& config) : config_(config) {
  for (const auto& loss : config.losses) losses_.push_back(AuxiliaryLoss::row(loss.type).make(loss));
}

void Balancer::declare(std::span<const int64_t> experts, ModelState& state) const {
  state.layers.resize(experts.size());
  for (size_t l = 0; l < experts.size() && config_.bias.update_rate > 0; ++l)
    state.layers[l].declare("bias", at::zeros({experts[l]}));
  for (const auto& loss : losses_) loss->declare(experts, state);
}

bool Balancer::reads_logits() const {
  return std::any_of(losses_.begin(), losses_.end(), [](const auto& loss) { return loss->reads_logits(); });
}

void Balancer::add_gradient(const LossView& view, int layer, ChoiceGradients& gradients) const {
  for (const auto& loss : losses_) loss->add_gradient(view, layer, gradients);
}

void Balancer::end_step(std::span<const StepTotals> layers, ModelState& state) const {
  for (const auto& loss : losses_) loss->end_step(layers, state);
  for (size_t l = 0; l < layers.size(); ++l)
    if (state.layers[l].has("bias"))
      move_bias(config_.bias, layers[l].selected_E, state.layers[l].values<float>("bias"));
}

std::vector<std::optional<double>> Balancer::coefficients(const ModelState& state) const {
  std::vector<std::optional<double>> values;
  for (const auto& loss : losses_) values.push_back(loss->coefficient(state));
  return values;
}

void move_bias(const BiasConfig& config, std::span<const int64_t> selected_E, std::span<float> bias_E) {
  const auto E = static_cast<int64_t>(bias_E.size());
  const int64_t total = std::accumulate(selected_E.begin(), selected_E.end(), int64_t{0});
  const double mean = static_cast<double>(total) / static_cast<double>(E);
  double sum = 0;
  for (int64_t e = 0; e < E; ++e) {
    // In integers, so that an exactly balanced expert does not move.
    const int64_t excess = total - selected_E[e] * E;
    double move = excess > 0 ? 1.0 : excess < 0 ? -1.0 : 0.0;
    if (config.rule == BiasRule::kProportional)
      move = mean > 0 ? static_cast<double>(excess) / (mean * static_cast<double>(E)) : 0.0;
    bias_E[e] += static_cast<float>(config.update_rate * move);
    sum += bias_E[e];
  }
  if (!config.center) return;
  for (int64_t e = 0; e < E; ++e) bias_E[e] -= static_cast<float>(sum / static_cast<double>(E));
}

}  // namespace conclave::moe
