// SPDX-License-Identifier: Apache-2.0
// Device-level token dropping (DeepSeek-V2, arXiv 2405.04434; MegaScale-MoE, arXiv 2505.11432; methods.md 2.8): the
// experts make D equal groups of neighbours, each of which takes as many pairs as its experts together, so that a busy
// expert may use the room of its neighbours. Of what a group is asked the pairs with the lowest affinity (their weight)
// are dropped until the rest fits; ties: the later pair goes first. A group is a number of the configuration and need
// not be a rank, so layouts change nothing. DeepSeek-V2 never drops tokens of a tenth of the sequences; here all are
// alike.
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class ByDevice : public Admission {
 public:
  explicit ByDevice(int64_t devices) : devices_(devices) {}

  // The largest weights first, of equal ones the earlier.
  std::vector<int32_t> order(const Choice& choice, const RouteInput&) const override {
    std::vector<int32_t> order(choice.picks.count());
    std::iota(order.begin(), order.end(), 0);
    by_dtype(choice.weights_C, [&](auto zero) {
      const auto weights = elements<decltype(zero)>(choice.weights_C);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
    });
    return order;
  }
  int64_t admit(Choice& choice, const RouteInput& in, int64_t capacity, std::span<uint8_t> keep_C) const override {
    const int64_t experts = choice.experts - choice.home.count;  // what stays at home asks for no place
    check(experts % devices_ == 0, "groups of experts are equal");
    const int64_t size = experts / devices_;
    std::vector<int64_t> taken(devices_, 0);
    int64_t dropped = 0;
    for (const int32_t pick : order(choice, in)) {
      if (!keep_C[pick]) continue;
      if (taken[choice.picks.ids_C[pick] / size]++ < capacity * size) continue;
      keep_C[pick] = 0;
      ++dropped;
    }
    return dropped;
  }

 private:
  int64_t devices_;
};

}  // namespace

Admission::Row device_policy() {
  return {.policy = DropPolicy::kDevice,
          .info = {.type = "device",
                   .what = "the largest weights first, to groups of experts with one capacity (capacity.devices)",
                   .source = "DeepSeek-V2, arXiv 2405.04434; MegaScale-MoE, arXiv 2505.11432",
                   .equation = "- weight, then token; C E / D pairs for each of D groups",
                   .causality = Causality::kLeaky,
                   .evaluation = "position"},
          .make = [](const CapacityConfig& config) -> std::unique_ptr<Admission> {
            return std::make_unique<ByDevice>(config.devices.value_or(1));
          }};
}

}  // namespace conclave::moe
