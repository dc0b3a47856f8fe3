// SPDX-License-Identifier: Apache-2.0
// Capacity: at most C = max(min, ceil(factor·k·T/E)) pairs of a micro-batch for each expert, k inside the factor. Who
// is admitted is the policy's order: one file per policy in policies/, one row in the table in capacity.cpp. A policy
// that leaks (C3) makes the training loss optimistic, and evaluation admits by position instead.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "moe/router.h"

namespace conclave::moe {

// Null = dropless. `tokens` are those of the micro-batch that are not padding.
std::optional<int64_t> expert_capacity(const CapacityConfig& config, bool training, int64_t tokens, int64_t top_k,
                                       double num_experts);

class Admission {
 public:
  virtual ~Admission() = default;
  // Picks in the order in which they ask for a place.
  virtual std::vector<int32_t> order(const Choice& choice, const RouteInput& in) const = 0;
  // Clears keep_C where an expert is full; entries already 0 (padding) take no place. Returns how many were dropped.
  // May send picks to other experts, and then sets choice.asked: their weights are the caller's to make again.
  virtual int64_t admit(Choice& choice, const RouteInput& in, int64_t capacity, std::span<uint8_t> keep_C) const;

  struct Row {
    DropPolicy policy;
    MethodInfo info;
    std::unique_ptr<Admission> (*make)(const CapacityConfig& config);
  };
  static std::span<const Row> table();
  static const Row& row(DropPolicy policy);
  // The policy of the configuration, or the form that it has in evaluation.
  static std::unique_ptr<Admission> make(const CapacityConfig& config, bool training);
};

}  // namespace conclave::moe
