// SPDX-License-Identifier: Apache-2.0
// Random token selection (DeepSpeed, arXiv 2201.05596): picks ask in an order that is drawn for each step and layer, by
// global token and place, so that late tokens are dropped no more often than early ones.
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class ByDraw : public Admission {
 public:
  std::vector<int32_t> order(const Choice& choice, const RouteInput& in) const override {
    const Random random = in.moment.random(Purpose::kDropOrder);
    std::vector<int32_t> order(choice.picks.count());
    std::vector<uint64_t> drawn(order.size());
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      const int32_t first = choice.picks.offsets_T1[t];
      for (int32_t i = first; i < choice.picks.offsets_T1[t + 1]; ++i)
        drawn[i] = random.bits(in.batch.global_token_ids[t] * choice.experts + (i - first));
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return drawn[a] < drawn[b]; });
    return order;
  }
};

}  // namespace

Admission::Row random_policy() {
  return {.policy = DropPolicy::kRandom,
          .info = {.type = "random",
                   .what = "in an order drawn for each step and layer",
                   .source = "DeepSpeed-MoE, arXiv 2201.05596",
                   .equation = "uniform draw of (step, layer, token, pick)",
                   .causality = Causality::kLeaky,
                   .evaluation = "position"},
          .make = [](const CapacityConfig&) -> std::unique_ptr<Admission> { return std::make_unique<ByDraw>(); }};
}

}  // namespace conclave::moe
