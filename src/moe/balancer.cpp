// SPDX-License-Identifier: Apache-2.0
#include "moe/balancer.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <numeric>

#include "core/error.h"

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

bool first_choices_only(const BalanceLoss& loss, int64_t top_k) {
  return loss.convention == Convention::kSwitch || loss.convention == Convention::kGshard ||
         (loss.convention == Convention::kDeepspeed && top_k <= 2);
}

// Counts of the whole model (scope model) or of one layer, and the tokens they were counted over.
struct Counted {
  std::vector<double> counts_E;
  double tokens = 0;
};

}  // namespace

std::vector<double> Balancer::shares(const BalanceLoss& loss, const View& view, int layer, int64_t sequence) const {
  Counted counted;
  const RouterStatistics& own = *view.layers[layer];
  const auto add = [&](const RouterStatistics& s, const BalanceState& state) {
    const bool first = first_choices_only(loss, s.top_k);
    auto counts = sum_rows(first ? s.first_BE : s.chosen_BE, s, sequence);
    double tokens = tokens_of(s, sequence);
    if (loss.level == Level::kGlobal) {
      const auto& last = state.last_counts_E;
      const double choices = std::accumulate(last.begin(), last.end(), 0.0);
      const double k = first ? 1.0 : static_cast<double>(s.top_k);
      for (int64_t e = 0; e < s.experts; ++e) counts[e] = choices > 0 ? last[e] * k / choices : k / s.experts;
      tokens = 1.0;
    }
    counted.counts_E.resize(s.experts, 0.0);
    for (int64_t e = 0; e < s.experts; ++e) counted.counts_E[e] += counts[e];
    counted.tokens += tokens;
  };
  if (loss.scope == Scope::kModel) {
    for (size_t l = 0; l < view.layers.size(); ++l) add(*view.layers[l], view.states[l]);
  } else {
    add(own, view.states[layer]);
  }
  const bool per_choice = loss.convention == Convention::kMegatron || loss.convention == Convention::kDeepseek ||
                          (loss.convention == Convention::kDeepspeed && own.top_k > 2);
  const double k = per_choice ? static_cast<double>(own.top_k) : 1.0;
  std::vector<double> a(own.experts, 0.0);
  for (int64_t e = 0; e < own.experts && counted.tokens > 0; ++e) {
    a[e] = static_cast<double>(own.experts) * counted.counts_E[e] / (k * counted.tokens);
  }
  return a;
}

std::vector<double> Balancer::affinity_gradient(const View& view, int layer, int64_t sequence) const {
  const RouterStatistics& s = *view.layers[layer];
  std::vector<double> gradient(s.experts, 0.0);
  for (const auto& loss : config_.losses) {
    if (loss.type != LossType::kSwitch) continue;
    const bool by_sequence = loss.level == Level::kSequence;
    double tokens = tokens_of(s, by_sequence ? sequence : -1);
    if (loss.scope == Scope::kModel) {
      tokens = 0;
      for (const auto* other : view.layers) tokens += tokens_of(*other, by_sequence ? sequence : -1);
    }
    const double weight = by_sequence ? s.targets_B[sequence] : s.targets();
    if (tokens == 0) continue;
    const auto a = shares(loss, view, layer, by_sequence ? sequence : -1);
    for (int64_t e = 0; e < s.experts; ++e) gradient[e] += loss.coef * weight * a[e] / tokens;
  }
  return gradient;
}

double Balancer::z_gradient_scale(const RouterStatistics& s) const {
  double scale = 0;
  for (const auto& loss : config_.losses) {
    if (loss.type == LossType::kZ && s.tokens() > 0)
      scale += 2 * loss.coef * s.targets() / static_cast<double>(s.tokens());
  }
  return scale;
}

namespace {

// Row of dz for one token: d affinity → dz through softmax or normalised sigmoid, plus the z-loss's
// 2c/T·lse·softmax(z).
template <typename T>
struct TokenGradient {
  Score score;
  std::span<const double> affinity_gradient_E;
  double z_scale;

  void add(std::span<const T> logits, std::span<const T> probs, T lse, std::span<T> dz) const {
    const size_t E = probs.size();
    double total = 1.0, inner = 0;
    if (score == Score::kSigmoid) total = std::accumulate(probs.begin(), probs.end(), 0.0);
    // Scores that all underflowed have no affinity, but the z-loss still pulls their logits up.
    const double unit = total > 0 ? 1 / total : 0.0;
    for (size_t e = 0; e < E; ++e) inner += affinity_gradient_E[e] * probs[e] * unit;
    for (size_t e = 0; e < E; ++e) {
      const double p = probs[e];
      const double slope = score == Score::kSigmoid ? p * (1 - p) * unit : p;
      double gradient = slope * (affinity_gradient_E[e] - inner);
      if (z_scale != 0) {
        const double softmax = score == Score::kSigmoid ? std::exp(static_cast<double>(logits[e]) - lse) : p;
        gradient += z_scale * lse * softmax;
      }
      dz[e] += static_cast<T>(gradient);
    }
  }
};

}  // namespace

void Balancer::add_logit_gradient(const View& view, int layer, const Choice& choice, const Batch& batch,
                                  Tensor& dlogits_TE) const {
  if (config_.losses.empty()) return;
  const RouterStatistics& s = *view.layers[layer];
  const int64_t E = s.experts;
  std::vector<std::vector<double>> gradients(s.sequences);
  for (int64_t b = 0; b < s.sequences; ++b) gradients[b] = affinity_gradient(view, layer, b);
  const double z_scale = z_gradient_scale(s);
  by_dtype(dlogits_TE, [&](auto zero) {
    using T = decltype(zero);
    const auto logits = elements<T>(choice.logits_TE), probs = elements<T>(choice.probs_TE),
               lse = elements<T>(choice.lse_T);
    const auto dz = elements<T>(dlogits_TE);
    at::parallel_for(0, batch.tokens_count(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (batch.segment_ids[t] < 0) continue;
        const TokenGradient<T> gradient{score_, gradients[t / batch.length], z_scale};
        gradient.add(logits.subspan(t * E, E), probs.subspan(t * E, E), lse[t], dz.subspan(t * E, E));
      }
    });
  });
}

double Balancer::value(const View& view, int index, int layer) const {
  const auto& loss = config_.losses[index];
  const RouterStatistics& s = *view.layers[layer];
  if (s.tokens() == 0) return 0;
  if (loss.type == LossType::kZ) return s.lse_squared / static_cast<double>(s.tokens());
  const auto mean_product = [&](int64_t sequence) {
    const auto a = shares(loss, view, layer, sequence);
    std::vector<double> affinity(s.experts, 0.0);
    double tokens = 0;
    for (size_t l = 0; l < view.layers.size(); ++l) {
      if (loss.scope == Scope::kLayer && static_cast<int>(l) != layer) continue;
      const auto sum = sum_rows(view.layers[l]->affinity_BE, *view.layers[l], sequence);
      for (int64_t e = 0; e < s.experts; ++e) affinity[e] += sum[e];
      tokens += tokens_of(*view.layers[l], sequence);
    }
    return tokens > 0 ? std::inner_product(a.begin(), a.end(), affinity.begin(), 0.0) / tokens : 0.0;
  };
  if (loss.level != Level::kSequence) return mean_product(-1);
  double sum = 0, weights = 0;
  for (int64_t b = 0; b < s.sequences; ++b) sum += s.targets_B[b] * mean_product(b), weights += s.targets_B[b];
  return weights > 0 ? sum / weights : 0.0;
}

void Balancer::end_step(std::span<const int64_t> selected_E, std::span<const int64_t> chosen_E,
                        BalanceState& state) const {
  state.last_counts_E.assign(chosen_E.begin(), chosen_E.end());
  if (!state.bias_E.defined()) return;
  const auto bias = elements<float>(state.bias_E);
  const int64_t E = static_cast<int64_t>(bias.size());
  const int64_t total = std::accumulate(selected_E.begin(), selected_E.end(), int64_t{0});
  const double mean = static_cast<double>(total) / static_cast<double>(E);
  double sum = 0;
  for (int64_t e = 0; e < E; ++e) {
    // In integers, so that an exactly balanced expert does not move.
    const int64_t excess = total - selected_E[e] * E;
    double move = excess > 0 ? 1.0 : excess < 0 ? -1.0 : 0.0;
    if (config_.bias.rule == BiasRule::kProportional) move = mean > 0 ? excess / (mean * E) : 0.0;
    bias[e] += static_cast<float>(config_.bias.update_rate * move);
    sum += bias[e];
  }
  if (!config_.bias.center) return;
  for (int64_t e = 0; e < E; ++e) bias[e] -= static_cast<float>(sum / E);
}

}  // namespace conclave::moe
