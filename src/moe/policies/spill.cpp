// SPDX-License-Identifier: Apache-2.0
// Spill to the next choice (methods.md 7.1; Switch's "no token left behind"): by position, and a pick whose expert is
// full asks the token's next best expert by logits among those it does not have, then the one after, `hops` of them at
// most. It weighs what the expert that takes it weighs; with capacity.renormalize the weights of what was kept are
// divided by their sum. With room for all picks in total and enough hops no token loses all of its picks. Losses
// of counts go by what was asked first.
#include <algorithm>
#include <numeric>

#include "moe/capacity.h"

namespace conclave::moe {
namespace {

class Spill : public Admission {
 public:
  explicit Spill(const SpillConfig& config) : hops_(config.hops) {}

  std::vector<int32_t> order(const Choice& choice, const RouteInput&) const override {
    std::vector<int32_t> order(choice.picks.count());
    std::iota(order.begin(), order.end(), 0);
    return order;
  }
  int64_t admit(Choice& choice, const RouteInput& in, int64_t capacity, std::span<uint8_t> keep_C) const override {
    const Picks asked = choice.picks;
    int64_t dropped = 0;
    by_dtype(choice.logits_TE,
             [&](auto zero) { dropped = spill<decltype(zero)>(choice, capacity, order(choice, in), keep_C); });
    if (choice.picks != asked) choice.asked = asked;
    return dropped;
  }

 private:
  template <typename T>
  int64_t spill(Choice& choice, int64_t capacity, const std::vector<int32_t>& order, std::span<uint8_t> keep_C) const;
  // Experts that the token does not have, best first.
  template <typename T>
  static std::vector<int32_t> others(std::span<const int32_t> own, std::span<const T> logits_E) {
    std::vector<int32_t> rest;
    for (int32_t e = 0; e < std::ssize(logits_E); ++e)
      if (std::find(own.begin(), own.end(), e) == own.end()) rest.push_back(e);
    std::stable_sort(rest.begin(), rest.end(), [&](int32_t a, int32_t b) { return logits_E[a] > logits_E[b]; });
    return rest;
  }

  std::optional<int64_t> hops_;
};

template <typename T>
int64_t Spill::spill(Choice& choice, int64_t capacity, const std::vector<int32_t>& order,
                     std::span<uint8_t> keep_C) const {
  const std::span<const T> logits = elements<T>(choice.logits_TE);
  std::vector<int64_t> taken(choice.experts, 0);
  int64_t dropped = 0;
  int64_t t = 0;
  for (const int32_t pick : order) {
    while (choice.picks.offsets_T1[t + 1] <= pick) ++t;
    if (!keep_C[pick]) continue;
    int32_t& id = choice.picks.ids_C[pick];
    if (taken[id] >= capacity) {
      const auto rest = others<T>(choice.picks.of(t), logits.subspan(t * choice.experts, choice.experts));
      const auto asks = rest.begin() + std::min<int64_t>(std::ssize(rest), hops_.value_or(std::ssize(rest)));
      const auto room = std::find_if(rest.begin(), asks, [&](int32_t e) { return taken[e] < capacity; });
      if (room == asks) {
        keep_C[pick] = 0;
        ++dropped;
        continue;
      }
      id = *room;
    }
    ++taken[id];
  }
  return dropped;
}

}  // namespace

Admission::Row spill_policy() {
  return {.policy = DropPolicy::kSpill,
          .info = {.type = "spill",
                   .what = "by position; who is refused asks the next best expert that has room",
                   .source = "Switch's no token left behind, arXiv 2101.03961",
                   .equation = "first of e, next(e), ... with room, w of the one that takes it",
                   .causality = Causality::kPositionCausal},
          .make = [](const CapacityConfig& config) -> std::unique_ptr<Admission> {
            return std::make_unique<Spill>(config.spill.value_or(SpillConfig()));
          }};
}

}  // namespace conclave::moe
