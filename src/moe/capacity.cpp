// SPDX-License-Identifier: Apache-2.0
#include "moe/capacity.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace conclave::moe {
namespace {

// Pairs in the order in which they ask for a place.
std::vector<int32_t> admission_order(const Choice& choice, DropPolicy policy) {
  std::vector<int32_t> order(choice.ids_TK.size());
  std::iota(order.begin(), order.end(), 0);  // token-major position
  if (policy == DropPolicy::kPosition) return order;
  if (policy == DropPolicy::kSlot) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return a % choice.top_k < b % choice.top_k; });
    return order;
  }
  check(policy == DropPolicy::kScore, "other drop policies are refused by the configuration");
  by_dtype(choice.weights_TK, [&](auto zero) {
    const auto weights = elements<decltype(zero)>(choice.weights_TK);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return weights[a] > weights[b]; });
  });
  return order;
}

}  // namespace

std::optional<int64_t> expert_capacity(const CapacityConfig& config, bool training, int64_t tokens, int64_t top_k,
                                       int64_t num_experts) {
  const auto factor = training || !config.eval_factor ? config.factor : config.eval_factor;
  if (!factor) return std::nullopt;
  const double wanted = *factor * static_cast<double>(top_k * tokens) / static_cast<double>(num_experts);
  // A factor such as 1.1 is a little more than 11/10 in binary: that must not be rounded up to one more place.
  return std::max(config.min, static_cast<int64_t>(std::ceil(wanted * (1 - 1e-12))));
}

int64_t drop_over_capacity(const Choice& choice, DropPolicy policy, int64_t capacity, std::span<uint8_t> keep_TK) {
  std::vector<int64_t> taken(choice.logits_TE.size(1), 0);
  int64_t dropped = 0;
  for (const int32_t pair : admission_order(choice, policy)) {
    if (!keep_TK[pair]) continue;
    if (taken[choice.ids_TK[pair]]++ < capacity) continue;
    keep_TK[pair] = 0;
    ++dropped;
  }
  return dropped;
}

}  // namespace conclave::moe
