// SPDX-License-Identifier: Apache-2.0
#include "moe/scorer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>

#include "nn/linear.h"

namespace conclave::moe {

Tensor Scorer::jittered(const Tensor& values_TD, const ScorerInput& in) const {
  if (!jitters(in.moment)) return values_TD;
  const Random random = in.moment.random(Purpose::kRouterJitter);
  const int64_t D = values_TD.size(1);
  Tensor result = at::empty_like(values_TD);
  by_dtype(values_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto from = elements<T>(values_TD), to = elements<T>(result);
    at::parallel_for(0, values_TD.size(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t d = 0; d < D; ++d) {
          const double u = 1 + jitter_ * (2 * random.uniform(in.token_ids[t] * D + d) - 1);
          to[t * D + d] = from[t * D + d] * static_cast<T>(u);
        }
      }
    });
  });
  return result;
}

template <typename Body>
void Scorer::for_each_block(const Tensor& scores_TS, const Body& body) const {
  int64_t begin = 0;
  for (const nn::ParameterId id : blocks_) {
    const int64_t columns = parameters_.value(id).size(0);
    body(id, blocks_.size() == 1 ? scores_TS : scores_TS.narrow(1, begin, columns).contiguous());
    begin += columns;
  }
}

Tensor Scorer::forward(const ScorerInput& in) const {
  if (blocks_.empty()) return {};
  const Tensor x = jittered(in.x_TD, in);
  std::vector<Tensor> scores;
  for (const nn::ParameterId id : blocks_) scores.push_back(nn::linear_forward(x, parameters_.value(id)));
  return scores.size() == 1 ? scores[0] : at::cat(scores, 1);
}

Tensor Scorer::backward_input(const Tensor& dscores_TS, const ScorerInput& in) const {
  Tensor dx;
  for_each_block(dscores_TS, [&](nn::ParameterId id, const Tensor& own) {
    const Tensor part = nn::linear_backward_input(own, parameters_.value(id));
    dx = dx.defined() ? dx.add_(part) : part;
  });
  return jittered(dx, in);
}

void Scorer::backward_weight(const Tensor& dscores_TS, const ScorerInput& in, nn::Gradients& gradients) const {
  const Tensor x = jittered(in.x_TD, in);
  for_each_block(dscores_TS, [&](nn::ParameterId id, const Tensor& own) {
    nn::linear_backward_weight(own, x, gradients.fresh, gradients.view(parameters_[id]));
  });
}

}  // namespace conclave::moe
