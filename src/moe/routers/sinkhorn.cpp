// SPDX-License-Identifier: Apache-2.0
// Sinkhorn routing (S-BASE, Clark et al. 2022, arXiv 2202.01169; as in Megatron): in training the k largest entries of
// a transport plan are chosen, exp(z) scaled so that every token and every expert has equal mass. The plan only
// selects: weights are sigmoid(z) for k = 1, softmax(z) else, and evaluation takes the k largest z. The plan looks at
// all tokens of the micro-batch that are not padding.
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>

#include "kernels/softmax.h"
#include "moe/gate.h"
#include "moe/router.h"

namespace conclave::moe {
namespace {

RouterConfig by_count(RouterConfig config, int64_t top_k) {
  config.score = top_k == 1 ? Score::kSigmoid : Score::kSoftmax;
  config.score_before_topk = true;
  return config;
}

// Column factors of the plan over rows that count, all in double and in order: the same on all ranks and threads.
class Plan {
 public:
  Plan(const SinkhornConfig& config, std::span<const double> mass_RE, int64_t experts)
      : mass_(mass_RE), E_(experts), rows_(static_cast<int64_t>(mass_RE.size()) / experts), columns_(experts, 1.0) {
    constexpr double kTiny = 1e-8;
    for (int64_t i = 0; i < config.iterations && rows_ > 0; ++i) {
      std::vector<double> sums(E_, 0.0);
      for (int64_t r = 0; r < rows_; ++r) {
        double row = 0;
        for (int64_t e = 0; e < E_; ++e) row += columns_[e] * mass_[r * E_ + e];
        const double factor = 1 / (static_cast<double>(rows_) * (row + kTiny));
        for (int64_t e = 0; e < E_; ++e) sums[e] += factor * mass_[r * E_ + e];
      }
      double change = 0;
      for (int64_t e = 0; e < E_; ++e) {
        const double next = 1 / (static_cast<double>(E_) * (sums[e] + kTiny));
        change += std::abs(next - columns_[e]);
        columns_[e] = next;
      }
      if (change / static_cast<double>(E_) <= config.tolerance) break;
    }
  }
  const std::vector<double>& columns() const { return columns_; }

 private:
  std::span<const double> mass_;
  int64_t E_, rows_;
  std::vector<double> columns_;
};

class SinkhornRouter : public Router {
 public:
  SinkhornRouter(const RouterConfig& config, const RouteShape& shape)
      : config_(config.sinkhorn.value_or(SinkhornConfig())), gate_(by_count(config, shape.top_k)), k_(shape.top_k) {}

  Choice route(const Tensor& scores_TS, const RouteInput& in) const override {
    Choice choice = gate_.scored(scores_TS);
    std::vector<int32_t> ids(scores_TS.size(0) * k_);
    kernels::top_k_rows(in.moment.training ? plan(choice, in.batch) : scores_TS, k_, ids);
    choice.picks = even_picks(std::move(ids), scores_TS.size(0));
    gate_.weigh(choice);
    return choice;
  }
  void weigh(Choice& choice, const RouteInput&) const override { gate_.weigh(choice); }
  Tensor backward(const Choice& choice, const ChoiceGradients& gradients) const override {
    return plus(gate_.backward(choice, gradients.weights_C), gradients.logits_TE);
  }

 private:
  // z plus the logarithm of its column's factor: compares like the plan within a row. [T, E], double
  Tensor plan(const Choice& choice, const Batch& batch) const {
    const Tensor logits = choice.logits_TE.to(at::kDouble).contiguous();
    const auto z = elements<double>(logits);
    const int64_t E = choice.experts;
    std::vector<double> mass;
    for (int64_t t = 0; t < batch.tokens_count(); ++t) {
      if (batch.segment_ids[t] < 0) continue;
      const auto row = z.subspan(t * E, E);
      const double top = *std::max_element(row.begin(), row.end());  // a row's factor absorbs it
      for (const double value : row) mass.push_back(std::exp(value - top));
    }
    Tensor result = logits.clone();
    const auto out = elements<double>(result);
    const Plan plan(config_, mass, E);
    for (size_t i = 0; i < out.size(); ++i) out[i] += std::log(plan.columns()[i % E]);
    return result;
  }

  SinkhornConfig config_;
  Gate gate_;
  int64_t k_;
};

std::unique_ptr<Router> make(const RouterConfig& config, const RouteShape& shape) {
  return std::make_unique<SinkhornRouter>(config, shape);
}

}  // namespace

Router::Row sinkhorn_router() {
  return {{.type = "sinkhorn",
           .what = "the k best entries of a balanced transport plan",
           .source = "Clark et al. 2022, arXiv 2202.01169; Megatron",
           .equation = "S = top-k(d0 exp(z) d1) with equal row and column sums, w = softmax(z), sigmoid(z) for k = 1",
           .causality = Causality::kLeaky,
           .evaluation = "top-k of the logits",
           .exports = "as topk"},
          make};
}

}  // namespace conclave::moe
