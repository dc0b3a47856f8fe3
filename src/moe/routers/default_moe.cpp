// SPDX-License-Identifier: Apache-2.0
// Default MoE (Panda et al. 2025, Dense Backpropagation Improves Training for Sparse MoE, arXiv 2504.12463): where a
// token does not choose an expert, the mean of what that expert gives stands in for its output,
//   y_t = Σ_{e∈S} p_te E_e(x_t) + Σ_{e∉S} p_te Ê_e,   p a softmax over all experts, not renormalised,
// so that every logit has the gradient of a dense mixture: ∂L/∂z_j = p_j (ã_j − Σ_i p_i ã_i), ã_i the product of ∂L/∂y
// with E_i(x), or with Ê_i where i was not chosen. Experts have their ordinary gradient, Ê has none.
//   Ê_e ← β Ê_e + (1 − β) mean of E_e(x) over the step's tokens that e computed; from zero, unmoved where it had none.
// The paper moves Ê before the step uses it, so that it holds later tokens of the same sequence (class C3); here it
// moves after the update, with the figures of the whole global batch, and is of class C2.
#include <ATen/ops/zeros.h>

#include "moe/dense_gradient.h"
#include "moe/gate.h"
#include "moe/output_sums.h"
#include "moe/router.h"
#include "moe/selection.h"

namespace conclave::moe {
namespace {

constexpr std::string_view kMeans = "default_outputs";

class DefaultMoeRouter : public Router {
 public:
  DefaultMoeRouter(const RouterConfig& config, const RouteShape& shape)
      : decay_(config.default_moe.value_or(DefaultMoeConfig()).decay),
        scale_(config.routed_scaling_factor),
        experts_(shape.experts),
        gate_(config),
        selection_(config, shape) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    choice.picks = selection_.best(choice.probs_TE);
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override {
    gate_.weigh(choice);
    choice.home_TV = at::zeros({choice.tokens(), home_terms()}, choice.probs_TE.options());
    by_dtype(choice.probs_TE, [&](auto zero) {
      using T = decltype(zero);
      const std::span<const T> probs = elements<T>(choice.probs_TE);
      const auto home = elements<T>(choice.home_TV);
      for (int64_t t = 0; t < choice.tokens(); ++t) {
        const auto terms = home.subspan(t * home_terms() + 1, experts_);
        for (int64_t e = 0; e < experts_; ++e) terms[e] = static_cast<T>(scale_) * probs[t * experts_ + e];
        for (const int32_t chosen : choice.picks.of(t)) terms[chosen] = 0;
      }
    });
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    const Tensor of_means = gradients.home_TV.narrow(1, 1, experts_).contiguous();
    return plus(dense_gradient(choice, gradients.weights_C, of_means, scale_), gradients.logits_TE);
  }
  bool backward_reads_logits() const override { return false; }

  int64_t home_terms() const override { return 1 + experts_; }
  std::string_view kept_vectors() const override { return kMeans; }
  bool reads_outputs() const override { return true; }
  void declare(const RouteShape& shape, MethodState& state) const override {
    state.declare(std::string(kMeans), at::zeros({shape.experts, shape.hidden}, at::kFloat));
  }
  void end_step(const StepTotals& totals, MethodState& state) const override {
    const auto means = state.values<float>(kMeans);
    const int64_t D = std::ssize(means) / experts_;
    for (int64_t e = 0; e < experts_; ++e) {
      if (totals.dispatched_E[e] == 0) continue;
      const double unit = kOutputUnit / static_cast<double>(totals.dispatched_E[e]);
      for (int64_t i = e * D; i < (e + 1) * D; ++i)
        means[i] =
            static_cast<float>(decay_ * means[i] + (1 - decay_) * unit * static_cast<double>(totals.outputs_ED[i]));
    }
  }

 private:
  double decay_, scale_;
  int64_t experts_;
  Gate gate_;
  Selection selection_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<DefaultMoeRouter>(config, shape);
}

}  // namespace

Router::Row default_moe_router() {
  return {{.type = "default_moe",
           .what = "the k best; mean outputs stand in for experts that were not chosen",
           .source = "Panda et al. 2025, arXiv 2504.12463",
           .equation = "y = sum over S of p_e E_e(x) + sum over others of p_e M_e; M_e = b M_e + (1 - b) mean E_e(x)",
           .causality = Causality::kLagged,
           .exports = "needs code: default vectors"},
          make};
}

}  // namespace conclave::moe
