// SPDX-License-Identifier: Apache-2.0
// All first picks in token order, then all second ones: a second choice never displaces a first (GShard, arXiv
// 2006.16668, algorithm 1).
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class BySlot : public Admission {
 public:
  std::vector<int32_t> order(const Choice& choice, const RouteInput&) const override {
    std::vector<int32_t> slot(choice.picks.count()), order(slot.size());
    for (int64_t t = 0; t < choice.tokens(); ++t)
      for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
        slot[i] = i - choice.picks.offsets_T1[t];
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return slot[a] < slot[b]; });
    return order;
  }
};

}  // namespace

Admission::Row slot_policy() {
  return {.policy = DropPolicy::kSlot,
          .info = {.type = "slot",
                   .what = "all first picks, then all second ones",
                   .source = "GShard, arXiv 2006.16668",
                   .equation = "pick, then token",
                   .causality = Causality::kLeaky,
                   .evaluation = "position"},
          .make = [](const CapacityConfig&) -> std::unique_ptr<Admission> { return std::make_unique<BySlot>(); }};
}

}  // namespace conclave::moe
