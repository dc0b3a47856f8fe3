// SPDX-License-Identifier: Apache-2.0
// Grouped dense backpropagation (Panda et al., Dense Backpropagation Improves Routing for Sparsely-Gated MoE,
// OpenReview huy8g3iKy0, of which the abstract alone was at hand; the estimator is that of methods.md 1.20). Forward is
// top-k:
//   y_t = r Σ_{e∈S_t} p_te E_e(x_t),   p a softmax over all experts, not renormalised.
// For the router's backward alone an expert j that t did not choose gives what it gave tokens like t:
//   Ê_tj = mean of E_j(x_u) over tokens u of t's sequence with j ∈ S_u and S_u ∩ S_t not empty, a constant,
// so that every logit learns as in a dense mixture: ∂L/∂z_j = r p_j (ã_j − Σ_i p_i ã_i), ã_i = ∂L/∂y_t · E_i(x_t), or
// Ê_ti; zero where there is no such token. All chosen (k = E): the exact gradient. One chosen (k = 1): nobody shares
// an expert and has another one, so this is refused.
// The group is a sequence, so that neither the size of micro-batches nor the layout changes it. Forward sees the token
// alone (class C0); that later tokens of the sequence enter the router's gradient is true of the loss's own gradient,
// too. Not the paper's later Default MoE, which changes forward (ledger of methods.md, 3).
#include "moe/dense_gradient.h"
#include "moe/gate.h"
#include "moe/router.h"
#include "moe/selection.h"

namespace conclave::moe {
namespace {

class DenseBackpropGroupRouter : public Router {
 public:
  DenseBackpropGroupRouter(const RouterConfig& config, const RouteShape& shape)
      : scale_(config.routed_scaling_factor), gate_(config), selection_(config, shape) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    selection_.choose(choice, choice.probs_TE, in.state);
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override { gate_.weigh(choice); }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    return plus(dense_gradient(choice, gradients.weights_C, gradients.stand_ins_TE, scale_), gradients.logits_TE);
  }
  bool backward_reads_logits() const override { return false; }
  bool wants_stand_ins() const override { return true; }

 private:
  double scale_;
  Gate gate_;
  Selection selection_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<DenseBackpropGroupRouter>(config, shape);
}

}  // namespace

Router::Row dense_backprop_group_router() {
  return {{.type = "dense_backprop_group",
           .what = "the k best; the router also learns from what others gave tokens that share an expert",
           .source = "Panda et al., OpenReview huy8g3iKy0 (abstract)",
           .equation = "y = sum over S of p_e E_e(x); dz_j = p_j (a_j - sum p_i a_i), a_j = dy mean of E_j(x_u) over u "
                       "with j in S_u and S_u meeting S",
           .exports = "as topk"},
          make};
}

}  // namespace conclave::moe
