// SPDX-License-Identifier: Apache-2.0
// BASE layers (Lewis et al. 2021, arXiv 2103.16716): in training tokens are assigned to experts so that each gets
// equally many and the sum of x_t·c_e is largest, by auction; evaluation takes the best c_e of each token. No auxiliary
// loss. The paper's y = α f(x) + (1 − α) x, α = sigmoid(x·c_e), has f(x) = x + F(x) with its own residual sum: x + α
// F(x), which is what a block adds to its stream here, so the weight is α and nothing else is added. Centroids c learn
// by α alone: the assignment has no gradient. The paper assigns each worker's tokens, after shuffling; here a
// micro-batch is assigned whole, so that layouts change nothing, and where E does not divide its tokens an expert gets
// at most ⌈T/E⌉. Centroids begin as normal rows of length about 0.1, which are nearly orthogonal; the paper's are
// orthogonal.
#include <algorithm>
#include <cmath>

#include "kernels/softmax.h"
#include "moe/auction.h"
#include "moe/gate.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

RouterConfig sigmoid_of_all(RouterConfig config) {
  config.score = Score::kSigmoid;
  config.norm_topk_prob = false;
  return config;
}

class BaseRouter : public Router {
 public:
  explicit BaseRouter(const RouterConfig& config)
      : config_(config.base.value_or(BaseConfig())), gate_(sigmoid_of_all(config)) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    std::vector<int32_t> ids(scores_TS.size(0));
    kernels::top_k_rows(scores_TS, 1, ids);
    if (in.moment.training) assign(scores_TS, in.batch, ids);
    choice.picks = even_picks(std::move(ids), scores_TS.size(0));
    gate_.weigh(choice);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override { gate_.weigh(choice); }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    return plus(gate_.backward(choice, gradients.weights_C), gradients.logits_TE);
  }
  bool backward_reads_logits() const override { return false; }

  std::vector<ScoreBlock> blocks(const RouteShape& shape) const override {
    constexpr double kLength = 0.1;
    if (shape.hidden == 0) return {{"router", shape.experts, {}}};
    return {{"router", shape.experts, kLength / std::sqrt(static_cast<double>(shape.hidden))}};
  }

 private:
  // Those tokens that are not padding.
  void assign(const Tensor& scores_TE, const Batch& batch, std::span<int32_t> ids_T) const {
    const Tensor scores = scores_TE.to(at::kDouble).contiguous();
    const auto all = elements<double>(scores);
    const int64_t E = scores.size(1);
    std::vector<double> values;
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < batch.tokens_count(); ++t) {
      if (batch.segment_ids[t] < 0) continue;
      tokens.push_back(t);
      // A score that is not finite ends the step elsewhere; the auction must end before.
      for (const double score : all.subspan(t * E, E)) values.push_back(std::isfinite(score) ? score : 0.0);
    }
    if (tokens.empty()) return;
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    constexpr double kLeast = 1e-9;
    const auto columns = balanced_assignment(values, E,
                                             {.epsilon = std::max(config_.epsilon * (*high - *low), kLeast),
                                              .most_bids = config_.sweeps * std::ssize(tokens)});
    for (size_t i = 0; i < tokens.size(); ++i) ids_T[tokens[i]] = columns[i];
  }

  BaseConfig config_;
  Gate gate_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape&) {
  return std::make_unique<BaseRouter>(config);
}

}  // namespace

Router::Row base_router() {
  return {{.type = "base",
           .what = "one expert for each token, equally many tokens for each expert",
           .source = "Lewis et al. 2021, arXiv 2103.16716",
           .equation = "argmax over assignments with T/E tokens for each expert of sum z_te, w = sigmoid(z)",
           .causality = Causality::kLeaky,
           .evaluation = "the best expert of each token",
           .exports = "as topk"},
          make};
}

}  // namespace conclave::moe
