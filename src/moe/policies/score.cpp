// SPDX-License-Identifier: Apache-2.0
// The largest weights first, of equal ones the earlier.
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class ByScore : public Admission {
 public:
  std::vector<int32_t> order(const Choice& choice, const RouteInput&) const override {
    std::vector<int32_t> order(choice.picks.count());
    std::iota(order.begin(), order.end(), 0);
    by_dtype(choice.weights_C, [&](auto zero) {
      const auto weights = elements<decltype(zero)>(choice.weights_C);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
    });
    return order;
  }
};

}  // namespace

Admission::Row score_policy() {
  return {.policy = DropPolicy::kScore,
          .info = {.type = "score",
                   .what = "the largest weights first",
                   .source = "Megatron, probs policy",
                   .equation = "- weight, then token",
                   .causality = Causality::kLeaky,
                   .evaluation = "position"},
          .make = [](const CapacityConfig&) -> std::unique_ptr<Admission> { return std::make_unique<ByScore>(); }};
}

}  // namespace conclave::moe
