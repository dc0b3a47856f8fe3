// SPDX-License-Identifier: Apache-2.0
// Zero-compute experts (MoE++, Jin et al. 2024, arXiv 2410.07348): beside the N_f experts that compute, N_z that give
// 0, the token x, or α₁x + α₂v with a vector v of the expert and (α₁, α₂) = softmax(x·W_cᵀ). One softmax and one choice
// over all; every pick weighs its score, also the ones that stay at home. Picks of an even load are τ to 1 between the
// two kinds: capacity of a computing expert is factor·τTk/(τN_f + N_z), and a switch loss weighs the others' part by τ.
// What differs from the paper: nothing bounds the tokens of a zero-compute expert, since none of them is sent anywhere;
// and the router does not see the logits of the layer before.
#include <ATen/ops/cat.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "moe/gate.h"
#include "moe/router.h"
#include "moe/selection.h"

namespace conclave::moe {
namespace {

class ZeroComputeRouter : public Router {
 public:
  ZeroComputeRouter(const RouterConfig& config, const RouteShape& shape)
      : config_(config.zero_compute.value_or(ZeroComputeConfig())),
        computing_(shape.experts),
        gate_(config),
        selection_(config, {.experts = shape.experts + home_experts(), .top_k = shape.top_k}) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    const int64_t columns = computing_ + home_experts();
    Choice choice = gate_.scored(scores_TS.narrow(1, 0, columns).contiguous());
    choice.scores_TS = scores_TS;
    choice.home = {.count = home_experts(), .balance = config_.tau};
    choice.picks = selection_.best(gate_.selection(choice));
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override {
    gate_.weigh(choice);
    choice.declined_C.assign(choice.picks.count(), 0);
    choice.home_TV = at::zeros({choice.tokens(), home_terms()}, choice.logits_TE.options());
    by_dtype(choice.logits_TE, [&](auto zero) {
      using T = decltype(zero);
      const Tensor mixing = mixing_of(choice);
      const auto weights = elements<T>(choice.weights_C), mix = elements<T>(mixing), home = elements<T>(choice.home_TV);
      for_each_home_pick(choice, [&](const HomePick& pick) {
        choice.declined_C[pick.index] = 1;
        const T w = weights[pick.index];
        T* terms = &home[pick.token * home_terms()];
        if (pick.copies()) terms[0] += w;
        if (!pick.mixes()) return;
        const T* alpha = &mix[(pick.token * config_.constant + pick.vector) * 2];
        terms[0] += w * alpha[0];
        terms[1 + pick.vector] += w * alpha[1];
      });
    });
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    Tensor dweights = gradients.weights_C.clone(), dmixing;
    if (gradients.home_TV.defined()) add_home_gradients(choice, gradients.home_TV, dweights, dmixing);
    const Tensor dlogits = plus(gate_.backward(choice, dweights), gradients.logits_TE);
    if (config_.constant == 0) return dlogits;
    if (!dmixing.defined()) dmixing = at::zeros({choice.tokens(), 2 * config_.constant}, dlogits.options());
    return at::cat({dlogits, dmixing}, 1);
  }

  std::vector<ScoreBlock> blocks(const RouteShape& shape) const override {
    std::vector<ScoreBlock> blocks{{"router", shape.experts + home_experts(), {}}};
    if (config_.constant > 0) blocks.push_back({"router.constant", 2 * config_.constant, {}});
    return blocks;
  }
  int64_t home_experts() const override { return config_.zero + config_.copy + config_.constant; }
  int64_t home_terms() const override { return 1 + config_.constant; }
  double planned_picks(const RouteShape& shape) const override {
    return static_cast<double>(shape.top_k * shape.experts) / even_experts(shape);
  }
  double even_experts(const RouteShape& shape) const override {
    return static_cast<double>(shape.experts) + static_cast<double>(home_experts()) / config_.tau;
  }

 private:
  struct HomePick {
    int64_t token;
    int32_t index;   // among the picks
    int64_t number;  // among the experts that compute nothing: zeros, copies, constants
    int64_t vector;  // of a constant, else negative
    int64_t zeros;

    bool mixes() const { return vector >= 0; }
    bool copies() const { return number >= zeros && !mixes(); }
  };
  template <typename Body>
  void for_each_home_pick(const Choice& choice, const Body& body) const {
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i) {
        const int64_t number = choice.picks.ids_C[i] - computing_;
        if (number >= 0) body(HomePick{t, i, number, number - config_.zero - config_.copy, config_.zero});
      }
    }
  }
  // (α₁, α₂) of every constant expert [T, 2n].
  Tensor mixing_of(const Choice& choice) const {
    const int64_t columns = computing_ + home_experts(), T = choice.tokens();
    const Tensor logits = choice.scores_TS.narrow(1, columns, 2 * config_.constant).contiguous();
    return at::softmax(logits.view({T, config_.constant, 2}), 2).view({T, 2 * config_.constant});
  }
  // What home terms say of weights and of the logits that mix.
  void add_home_gradients(const Choice& choice, const Tensor& dhome_TV, Tensor& dweights_C, Tensor& dmixing) const {
    const Tensor mixing = mixing_of(choice);
    dmixing = at::zeros_like(mixing);
    by_dtype(dhome_TV, [&](auto zero) {
      using T = decltype(zero);
      const auto weights = elements<T>(choice.weights_C), mix = elements<T>(mixing), dhome = elements<T>(dhome_TV);
      const auto dweights = elements<T>(dweights_C), dlogits = elements<T>(dmixing);
      for_each_home_pick(choice, [&](const HomePick& pick) {
        const T* terms = &dhome[pick.token * home_terms()];
        if (pick.copies()) dweights[pick.index] += terms[0];
        if (!pick.mixes()) return;
        const int64_t at = (pick.token * config_.constant + pick.vector) * 2;
        const T of_x = terms[0], of_vector = terms[1 + pick.vector];
        dweights[pick.index] += mix[at] * of_x + mix[at + 1] * of_vector;
        const T slope = weights[pick.index] * mix[at] * mix[at + 1] * (of_x - of_vector);
        dlogits[at] += slope;
        dlogits[at + 1] -= slope;
      });
    });
  }

  ZeroComputeConfig config_;
  int64_t computing_;
  Gate gate_;
  Selection selection_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<ZeroComputeRouter>(config, shape);
}

}  // namespace

Router::Row zero_compute_router() {
  return {{.type = "zero_compute",
           .what = "the k best of experts that compute and such that give 0, the token, or the token and a vector",
           .source = "Jin et al. 2024, MoE++, arXiv 2410.07348",
           .equation = "S = top-k(p), y = sum over S of p_e E_e(x), E_e(x) in {FFN, 0, x, a1 x + a2 v_e}",
           .exports = "needs code: zero-compute experts"},
          make};
}

}  // namespace conclave::moe
