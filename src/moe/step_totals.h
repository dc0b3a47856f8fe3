// SPDX-License-Identifier: Apache-2.0
// Routing figures of one MoE layer in one optimizer step, summed over micro-batches and ranks. E experts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace conclave::moe {

struct StepTotals {
  std::vector<int64_t> chosen_E = {}, selected_E = {};  // see RouterStatistics; null experts included
  std::vector<int64_t> dispatched_E = {};
  int64_t top_k = 0, tokens = 0, dropped = 0;
  std::optional<int64_t> sent = {};     // rows that travelled, where similar ones travel as one
  double entropy = 0, lse_squared = 0;  // sums over tokens
  std::vector<double> losses = {};      // raw value of each auxiliary loss, weighted by targets
  std::vector<double> sums = {};        // of what the router counts for itself
  double targets = 0;
  std::vector<int64_t> outputs_ED = {};  // what experts gave, see output_sums.h; empty where the router reads none
};

}  // namespace conclave::moe
