// SPDX-License-Identifier: Apache-2.0
#include "moe/capacity.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"

namespace conclave::moe {

// One for each file in policies/.
Admission::Row bpr_policy();
Admission::Row device_policy();
Admission::Row position_policy();
Admission::Row random_policy();
Admission::Row slot_policy();
Admission::Row score_policy();
Admission::Row spill_policy();

std::optional<int64_t> expert_capacity(const CapacityConfig& config, bool training, int64_t tokens, int64_t top_k,
                                       double num_experts) {
  const auto factor = training || !config.eval_factor ? config.factor : config.eval_factor;
  if (!factor) return std::nullopt;
  const double wanted = *factor * static_cast<double>(top_k * tokens) / num_experts;
  // A factor such as 1.1 is a little more than 11/10 in binary: that must not be rounded up to one more place.
  return std::max(config.min, static_cast<int64_t>(std::ceil(wanted * (1 - 1e-12))));
}

int64_t Admission::admit(Choice& choice, const RouteInput& in, int64_t capacity, std::span<uint8_t> keep_C) const {
  std::vector<int64_t> taken(choice.experts, 0);
  int64_t dropped = 0;
  for (const int32_t pick : order(choice, in)) {
    if (!keep_C[pick]) continue;
    if (taken[choice.picks.ids_C[pick]]++ < capacity) continue;
    keep_C[pick] = 0;
    ++dropped;
  }
  return dropped;
}

std::span<const Admission::Row> Admission::table() {
  static const std::array rows{position_policy(), slot_policy(),  score_policy(), random_policy(),
                               bpr_policy(),      spill_policy(), device_policy()};
  return rows;
}

const Admission::Row& Admission::row(DropPolicy policy) {
  const auto rows = table();
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.policy == policy; });
  check(found != rows.end(), "every drop policy has a row");
  return *found;
}

std::unique_ptr<Admission> Admission::make(const CapacityConfig& config, bool training) {
  const Row& wanted = row(config.policy);
  const bool leaky = wanted.info.causality == Causality::kLeaky;
  return (training || !leaky ? wanted : row(DropPolicy::kPosition)).make(config);
}

}  // namespace conclave::moe
