// SPDX-License-Identifier: Apache-2.0
// Capacity: at most C = max(min, ceil(factor·k·T/E)) pairs of a micro-batch for each expert, k inside the factor; who
// is admitted is the policy's order. Causality (methods.md 0.4): position, token-major, is C1; score (highest weight
// first) and slot (all first choices, then all second ones: GShard, arXiv 2006.16668, algorithm 1) are C3: the training
// loss is then optimistic, and evaluation admits by position instead.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "moe/moe_config.h"
#include "moe/routing.h"

namespace conclave::moe {

// Null = dropless. `tokens` are those of the micro-batch that are not padding.
std::optional<int64_t> expert_capacity(const CapacityConfig& config, bool training, int64_t tokens, int64_t top_k,
                                       int64_t num_experts);

// Clears keep_TK where an expert is full; entries already 0 (padding) take no place. Returns how many were dropped.
int64_t drop_over_capacity(const Choice& choice, DropPolicy policy, int64_t capacity, std::span<uint8_t> keep_TK);

}  // namespace conclave::moe
