// SPDX-License-Identifier: Apache-2.0
// Token-major: all picks of a token, then those of the next.
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class ByPosition : public Admission {
 public:
  std::vector<int32_t> order(const Choice& choice, const RouteInput&) const override {
    std::vector<int32_t> order(choice.picks.count());
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
};

}  // namespace

Admission::Row position_policy() {
  return {.policy = DropPolicy::kPosition,
          .info = {.type = "position",
                   .what = "in the order of the micro-batch, all picks of a token together",
                   .source = "Switch, and DeepSpeed without random token selection",
                   .equation = "token, then pick",
                   .causality = Causality::kPositionCausal},
          .make = [](const CapacityConfig&) -> std::unique_ptr<Admission> { return std::make_unique<ByPosition>(); }};
}

}  // namespace conclave::moe
