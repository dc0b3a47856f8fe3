// SPDX-License-Identifier: Apache-2.0
// SparseMixer-v2 (GRIN, Liu et al. 2024, arXiv 2409.12136; as in phi-3.5-MoE): k draws after each other. A draw leaves
// out experts with (m − z_e) / max(|z_e|, m) > 2ε, m the largest logit that is left, and samples i from p = softmax
// over the rest; an evaluation takes the largest. The weight is p_i·u, u = 1 if i is the largest or a coin of 1/4 says
// so, else 1/3: with weights 3/4 and 1/4 the points 1/3 and 1 integrate a cubic exactly, so that backward may go as if
// the weight were p_i, with du left out: dz_j = p_i (1[j=i] − p_j) dw. Later draws leave out earlier experts; weights
// are not divided by their sum. Logits that are all negative leave max(|z_e|, m) = |z_e|; of a zero nothing is left
// out.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "moe/gate.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

class SparseMixerRouter : public Router {
 public:
  SparseMixerRouter(const RouterConfig& config, const RouteShape& shape)
      : gate_({}),
        reach_(2 * config.sparsemixer.value_or(SparseMixerConfig()).epsilon),
        scale_(config.routed_scaling_factor),
        k_(shape.top_k) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    by_dtype(scores_TS, [&](auto zero) { draw<decltype(zero)>(choice, in); });
    weigh(choice, in);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput& in) const override {
    choice.raw_C = at::empty({choice.picks.count()}, choice.logits_TE.options());
    choice.weights_C = at::empty_like(choice.raw_C);
    by_dtype(choice.logits_TE, [&](auto zero) { weigh_as<decltype(zero)>(choice, in); });
  }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    Tensor dlogits = at::zeros_like(choice.logits_TE);
    by_dtype(dlogits, [&](auto zero) { differentiate<decltype(zero)>(choice, gradients.weights_C, dlogits); });
    return plus(dlogits, gradients.logits_TE);
  }

 private:
  // One draw of one token: softmax over the experts that are neither among `before` nor too far below the largest.
  struct Draw {
    std::vector<double> p_E;
    int32_t largest = -1;
  };
  // `own` (or -1) is in reach whatever its logit says: picks may be those of another run.
  template <typename T>
  Draw draw_of(std::span<const T> z_E, std::span<const int32_t> before, int32_t own) const;
  template <typename T>
  void draw(Choice& choice, const RouteInput& in) const;
  template <typename T>
  void weigh_as(Choice& choice, const RouteInput& in) const;
  template <typename T>
  void differentiate(const Choice& choice, const Tensor& dweights_C, Tensor& dlogits_TE) const;
  // Calls body(token, pick, the draw that it came from).
  template <typename T, typename Body>
  void for_each_draw(const Choice& choice, const Body& body) const {
    const std::span<const T> logits = elements<T>(choice.logits_TE);
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      const auto ids = choice.picks.of(t);
      for (size_t j = 0; j < ids.size(); ++j)
        body(t, choice.picks.offsets_T1[t] + static_cast<int32_t>(j),
             draw_of<T>(logits.subspan(t * choice.experts, choice.experts), ids.first(j), ids[j]));
    }
  }
  // Draws of a token: for each pick one for each expert, and the coin.
  int64_t first_draw(int64_t token, int64_t pick, int64_t experts) const { return (token * k_ + pick) * (experts + 1); }

  Gate gate_;
  double reach_, scale_;
  int64_t k_;
};

template <typename T>
SparseMixerRouter::Draw SparseMixerRouter::draw_of(std::span<const T> z_E, std::span<const int32_t> before,
                                                   int32_t own) const {
  const auto E = static_cast<int32_t>(z_E.size());
  const auto left = [&](int32_t e) { return std::find(before.begin(), before.end(), e) == before.end(); };
  Draw draw{std::vector<double>(E, 0.0)};
  for (int32_t e = 0; e < E; ++e)
    if (left(e) && (draw.largest < 0 || z_E[e] > z_E[draw.largest])) draw.largest = e;
  const double m = z_E[draw.largest];
  double sum = 0;
  for (int32_t e = 0; e < E; ++e) {
    const double z = z_E[e], unit = std::max(std::abs(z), m);
    if (!left(e) || (e != own && unit > 0 && (m - z) / unit > reach_)) continue;
    sum += draw.p_E[e] = std::exp(z - m);
  }
  for (double& p : draw.p_E) p /= sum;
  return draw;
}

template <typename T>
void SparseMixerRouter::draw(Choice& choice, const RouteInput& in) const {
  const int64_t E = choice.experts, tokens = choice.logits_TE.size(0);
  const std::span<const T> logits = elements<T>(choice.logits_TE);
  std::optional<Random> random;
  if (in.moment.training) random = in.moment.random(Purpose::kRouterSample);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < k_; ++j) {
      const auto before = std::span<const int32_t>(ids).last(j);
      const Draw draw = draw_of<T>(logits.subspan(t * E, E), before, -1);
      int32_t best = draw.largest;
      // The largest of log p + Gumbel noise is a sample of p.
      double most = -std::numeric_limits<double>::infinity();
      for (int32_t e = 0; e < E && random; ++e) {
        if (draw.p_E[e] == 0) continue;
        const double u = random->uniform(first_draw(in.batch.global_token_ids[t], j, E) + e);
        const double value = std::log(draw.p_E[e]) - std::log(-std::log(u));
        if (value > most) most = value, best = e;
      }
      ids.push_back(best);
    }
  }
  choice.picks = even_picks(std::move(ids), tokens);
}

template <typename T>
void SparseMixerRouter::weigh_as(Choice& choice, const RouteInput& in) const {
  const int64_t E = choice.experts;
  const auto raw = elements<T>(choice.raw_C), weights = elements<T>(choice.weights_C);
  for_each_draw<T>(choice, [&](int64_t t, int32_t pick, const Draw& draw) {
    const int32_t id = choice.picks.ids_C[pick];
    double u = 1;
    if (in.moment.training && id != draw.largest) {
      const int64_t coin = first_draw(in.batch.global_token_ids[t], pick - choice.picks.offsets_T1[t], E) + E;
      u = in.moment.random(Purpose::kRouterSample).uniform(coin) < 0.25 ? 1 : 1.0 / 3;
    }
    raw[pick] = static_cast<T>(draw.p_E[id] * scale_);
    weights[pick] = static_cast<T>(draw.p_E[id] * scale_ * u);
  });
}

template <typename T>
void SparseMixerRouter::differentiate(const Choice& choice, const Tensor& dweights_C, Tensor& dlogits_TE) const {
  const auto dweights = elements<T>(dweights_C), dz = elements<T>(dlogits_TE);
  for_each_draw<T>(choice, [&](int64_t t, int32_t pick, const Draw& draw) {
    const int32_t id = choice.picks.ids_C[pick];
    const double arrived = static_cast<double>(dweights[pick]) * draw.p_E[id] * scale_;
    for (int64_t e = 0; e < choice.experts; ++e)
      dz[t * choice.experts + e] += static_cast<T>(arrived * ((e == id ? 1.0 : 0.0) - draw.p_E[e]));
  });
}

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<SparseMixerRouter>(config, shape);
}

}  // namespace

Router::Row sparsemixer_router() {
  return {{.type = "sparsemixer",
           .what = "k sampled experts with a mid-point estimate of the gradient",
           .source = "Liu et al. 2024, arXiv 2409.12136",
           .equation = "i ~ softmax(z near max z), w = p_i u, u = 1 or 1/3; dz_j = p_i (1[j=i] - p_j) dw",
           .evaluation = "the largest instead of a sample, u = 1",
           .exports = "Phi-3.5-MoE for k = 2"},
          make};
}

}  // namespace conclave::moe
