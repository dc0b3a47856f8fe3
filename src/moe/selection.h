// SPDX-License-Identifier: Apache-2.0
// Which experts a token takes by comparing scores: the k best, or the k best of the best groups (DeepSeek-V2's devices,
// arXiv 2405.04434; DeepSeek-V3's nodes, arXiv 2412.19437), or the fewest whose scores add up to top_p (Huang et al.
// 2024, arXiv 2403.07652; HMoE). Ties go to the lower number.
#pragma once

#include "moe/moe_config.h"
#include "moe/router.h"

namespace conclave::moe {

class Selection {
 public:
  Selection(const RouterConfig& config, const RouteShape& shape);
  // By `scores_TE` plus `bias_E` (undefined = none).
  Picks best(const Tensor& scores_TE, const Tensor& bias_E = {}) const;
  // Sets picks, and unbiased picks where there is a bias.
  void choose(Choice& choice, const Tensor& scores_TE, const MethodState& state) const;

 private:
  // Scores with all experts of the worse groups at minus infinity. A group's score is the sum of its best `counted_`.
  Tensor limited(const Tensor& scores_TE) const;
  Picks most_likely(const Tensor& scores_TE) const;

  int64_t k_, groups_, kept_, counted_;
  std::optional<double> top_p_;
};

}  // namespace conclave::moe
