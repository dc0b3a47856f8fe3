// SPDX-License-Identifier: Apache-2.0
#include "moe/selection.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/softmax.h"

namespace conclave::moe {

Selection::Selection(const RouterConfig& config, const RouteShape& shape)
    : k_(shape.top_k), groups_(config.n_group), kept_(config.topk_group), top_p_(config.top_p) {
  check(shape.experts % groups_ == 0, "groups of experts are equal");
  const bool top2 = config.group_score == GroupScore::kTop2 ||
                    (config.group_score == GroupScore::kAuto && config.score == Score::kSigmoid);
  counted_ = top2 ? std::min<int64_t>(2, shape.experts / groups_) : 1;
}

Tensor Selection::limited(const Tensor& scores_TE) const {
  if (groups_ == 1 || kept_ == groups_) return scores_TE;
  Tensor result = scores_TE.clone();
  const int64_t E = scores_TE.size(1), size = E / groups_;
  by_dtype(result, [&](auto zero) {
    using T = decltype(zero);
    const auto scores = elements<T>(result);
    at::parallel_for(0, result.size(0), 64, [&](int64_t begin, int64_t end) {
      std::vector<T> group(size), value(groups_);
      std::vector<int64_t> order(groups_);
      for (int64_t t = begin; t < end; ++t) {
        T* row = &scores[t * E];
        for (int64_t g = 0; g < groups_; ++g) {
          std::copy_n(row + g * size, size, group.begin());
          std::partial_sort(group.begin(), group.begin() + counted_, group.end(), std::greater<>());
          value[g] = std::accumulate(group.begin(), group.begin() + counted_, T{0});
        }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return value[a] > value[b]; });
        for (int64_t i = kept_; i < groups_; ++i)
          std::fill_n(row + order[i] * size, size, -std::numeric_limits<T>::infinity());
      }
    });
  });
  return result;
}

Picks Selection::most_likely(const Tensor& scores_TE) const {
  const int64_t E = scores_TE.size(1);
  Picks picks{{0}, {}};
  std::vector<int32_t> order(scores_TE.numel());
  kernels::top_k_rows(scores_TE, E, order);
  by_dtype(scores_TE, [&](auto zero) {
    const auto scores = elements<decltype(zero)>(scores_TE);
    for (int64_t t = 0; t < scores_TE.size(0); ++t) {
      double sum = 0;
      for (int64_t j = t * E; j < (t + 1) * E && sum < *top_p_; ++j) {
        picks.ids_C.push_back(order[j]);
        sum += scores[t * E + order[j]];
      }
      picks.offsets_T1.push_back(static_cast<int32_t>(picks.ids_C.size()));
    }
  });
  return picks;
}

Picks Selection::best(const Tensor& scores_TE, const Tensor& bias_E) const {
  if (top_p_) return most_likely(scores_TE);
  std::vector<int32_t> ids(scores_TE.size(0) * k_);
  kernels::top_k_rows(limited(bias_E.defined() ? scores_TE + bias_E : scores_TE), k_, ids);
  return even_picks(std::move(ids), scores_TE.size(0));
}

void Selection::choose(Choice& choice, const Tensor& scores_TE, const MethodState& state) const {
  const Tensor bias = state.get("bias");
  choice.picks = best(scores_TE, bias);
  if (bias.defined()) choice.unbiased = best(scores_TE);
}

}  // namespace conclave::moe
