// SPDX-License-Identifier: Apache-2.0
#include "model/initialisation.h"

#include <algorithm>
#include <cmath>

namespace conclave::model {

Initialisation::Initialisation(const ModelConfig& model, int64_t layers)
    : mup_(model.init == Init::kMup),
      fan_in_(model.init == Init::kFanIn),
      scale_(model.init_scale),
      base_(model.mup),
      hidden_(model.hidden_size),
      std_(model.init_std),
      residual_std_(model.init_std) {
  if (model.init == Init::kScaled) residual_std_ /= std::sqrt(2.0 * static_cast<double>(layers));
}

Draw Initialisation::matrix(int64_t inputs) const {
  const auto n = static_cast<double>(inputs);
  if (fan_in_) return {std::sqrt(scale_ / n), 1, true};
  if (!mup_) return {std_, 1};
  return {1 / std::sqrt(n), static_cast<double>(base_.base_width) / n};
}

Draw Initialisation::residual(int64_t inputs) const {
  return mup_ || fan_in_ ? matrix(inputs) : Draw{residual_std_, 1};
}

Draw Initialisation::head() const {
  if (fan_in_) return matrix(hidden_);
  return {mup_ ? 0 : std_, 1};
}

double Initialisation::logit_scale() const {
  return mup_ ? static_cast<double>(base_.base_width) / static_cast<double>(hidden_) : 1;
}

std::optional<double> Initialisation::score_scale(int64_t head_dim) const {
  if (!mup_) return std::nullopt;
  return std::sqrt(static_cast<double>(base_.base_head_dim)) / static_cast<double>(head_dim);
}

namespace {

double normal_cdf(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }

// Of a softmax over many standard normal logits, what the largest ones add up to that are this fraction of them:
// ∫ eᶻ φ(z) dz over z > q, by the whole integral e^½, with P(z > q) = fraction.
double share_of_largest(double fraction) {
  if (fraction >= 1) return 1;
  double low = -40, high = 40;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (normal_cdf(-middle) > fraction ? low : high) = middle;
  }
  return normal_cdf(1 - low);
}

}  // namespace

double Initialisation::weight_scale(const moe::MoeConfig& moe, const LayerShape& layer) const {
  if (!mup_ || !weights_share_one(moe)) return 1;
  // Both counted after granularity, which leaves the fraction as it is; the base model chooses as many before it.
  const auto chosen = static_cast<double>(layer.top_k);
  const double slices = static_cast<double>(std::max<int64_t>(moe.granularity, 1));
  return share_of_largest(chosen / (static_cast<double>(base_.base_experts) * slices)) /
         share_of_largest(chosen / static_cast<double>(layer.num_experts));
}

bool weights_share_one(const moe::MoeConfig& moe) {
  const moe::RouterConfig& router = moe.router;
  if (router.type == "expert_choice") return true;
  if (router.type == "sinkhorn") return !router.norm_topk_prob && moe.top_k.most() > 1;
  const bool over_all = router.score == moe::Score::kSoftmax && router.score_before_topk && !router.norm_topk_prob;
  // Picks until their weights add up to top_p do so with any number of experts.
  return over_all && !router.top_p && !moe.capacity.renormalize &&
         (router.type == "topk" || router.type == "dense_backprop_group");
}

}  // namespace conclave::model
