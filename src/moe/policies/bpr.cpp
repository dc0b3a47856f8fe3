// SPDX-License-Identifier: Apache-2.0
// Batch-prioritised routing (V-MoE, Riquelme et al. 2021, arXiv 2106.05974): tokens in the order of their largest
// weight; all their first picks, then all second ones.
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class ByPriority : public Admission {
 public:
  std::vector<int32_t> order(const Choice& choice, const RouteInput&) const override {
    std::vector<int32_t> tokens(choice.tokens()), order;
    std::iota(tokens.begin(), tokens.end(), 0);
    by_dtype(choice.weights_C, [&](auto zero) {
      using T = decltype(zero);
      const auto weights = elements<T>(choice.weights_C);
      std::vector<T> largest(tokens.size(), T{0});
      for (const int32_t t : tokens)
        for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
          largest[t] = std::max(largest[t], weights[i]);
      std::stable_sort(tokens.begin(), tokens.end(), [&](int32_t a, int32_t b) { return largest[a] > largest[b]; });
    });
    for (int32_t slot = 0; std::ssize(order) < choice.picks.count(); ++slot)
      for (const int32_t t : tokens)
        if (choice.picks.offsets_T1[t] + slot < choice.picks.offsets_T1[t + 1])
          order.push_back(choice.picks.offsets_T1[t] + slot);
    return order;
  }
};

}  // namespace

Admission::Row bpr_policy() {
  return {.policy = DropPolicy::kBpr,
          .info = {.type = "bpr",
                   .what = "tokens by their largest weight, all first picks before second ones",
                   .source = "V-MoE, arXiv 2106.05974",
                   .equation = "pick, then - largest weight of the token, then token",
                   .causality = Causality::kLeaky,
                   .evaluation = "position"},
          .make = [](const CapacityConfig&) -> std::unique_ptr<Admission> { return std::make_unique<ByPriority>(); }};
}

}  // namespace conclave::moe
