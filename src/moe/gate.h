// SPDX-License-Identifier: Apache-2.0
// Scores and the weights of picks, with their gradients: what most routers share once they have chosen. Scores
// s = softmax(z) or sigmoid(z); weights are the scores of the picks, or divided by their sum over the token's picks,
// times a factor r; or a softmax over the picked logits alone. Gradients: the table of methods.md 0.2.
#pragma once

#include <algorithm>

#include "moe/moe_config.h"
#include "moe/routing.h"

namespace conclave::moe {

class Gate {
 public:
  explicit Gate(const RouterConfig& config)
      : score_(config.score),
        over_picks_(config.score == Score::kSoftmax && !config.score_before_topk),
        normalise_(config.norm_topk_prob),
        scale_(config.routed_scaling_factor) {}

  // Logits, scores, logsumexp and affinity of a choice that has no picks yet.
  Choice scored(const Tensor& logits_TE) const;
  // By what experts are compared: the logits where the softmax is over the picks only, else the scores.
  const Tensor& selection(const Choice& choice) const { return over_picks_ ? choice.logits_TE : choice.probs_TE; }
  // Sets raw scores and weights of the picks.
  void weigh(Choice& choice) const;
  // d logits from d weights.
  Tensor backward(const Choice& choice, const Tensor& dweights_C) const;

 private:
  template <typename T>
  void weigh_as(Choice& choice) const;
  template <typename T>
  void differentiate(const Choice& choice, const Tensor& dweights_C, Tensor& dlogits_TE) const;

  Score score_;
  bool over_picks_, normalise_;
  double scale_;
};

// Every expert that `keep(i)` says, i the element of `values_TE`; of each token the largest value first, ties to the
// lower id. For routers that give tokens any number of experts.
template <typename T, typename Keep>
Picks picks_where(std::span<const T> values_TE, int64_t experts, const Keep& keep) {
  Picks picks;
  picks.offsets_T1.push_back(0);
  for (size_t row = 0; row < values_TE.size(); row += experts) {
    const auto begin = static_cast<std::ptrdiff_t>(picks.ids_C.size());
    for (int32_t e = 0; e < experts; ++e)
      if (keep(row + e)) picks.ids_C.push_back(e);
    std::stable_sort(picks.ids_C.begin() + begin, picks.ids_C.end(),
                     [&](int32_t a, int32_t b) { return values_TE[row + a] > values_TE[row + b]; });
    picks.offsets_T1.push_back(static_cast<int32_t>(picks.ids_C.size()));
  }
  return picks;
}

// `gradient` (may be undefined) + what losses said of the logits (may be undefined).
Tensor plus(Tensor gradient, const Tensor& more);

}  // namespace conclave::moe
