// SPDX-License-Identifier: Apache-2.0
// What the balancing losses and the reports need to know of one router in one micro-batch. Padding counts in nothing.
// Integer counts are exact whatever the layout; probability sums run over tokens in order. B sequences, E experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/batch.h"
#include "moe/moe_config.h"
#include "moe/routing.h"

namespace conclave::moe {

struct RouterStatistics {
  int64_t experts = 0, sequences = 0, top_k = 0;
  std::vector<int64_t> tokens_B;    // that are not padding
  std::vector<double> targets_B;    // that count in the loss
  std::vector<int64_t> chosen_BE;   // by unbiased scores, before drops: what the auxiliary losses count
  std::vector<int64_t> first_BE;    // first choices only
  std::vector<double> affinity_BE;  // sums of probabilities (of row-normalised scores under sigmoid)
  std::vector<int64_t> selected_E;  // by the selection that was used (bias included), before drops: loss-free balancing
  std::vector<int64_t> dispatched_E;  // after drops
  double lse_squared = 0;             // sum over tokens
  double entropy = 0;                 // sum over tokens of the affinities' entropy, nats
  int64_t dropped = 0;

  int64_t tokens() const;
  double targets() const;
};

// `unbiased_ids_TK` are the choices without bias (the same as choice.ids_TK when there is none).
RouterStatistics gather_statistics(const Choice& choice, std::span<const int32_t> unbiased_ids_TK,
                                   const Routing& routing, const Batch& batch, Score score);

}  // namespace conclave::moe
