// SPDX-License-Identifier: Apache-2.0
// What the balancing losses and the reports need to know of one router in one micro-batch. Padding counts in nothing.
// Integer counts are exact whatever the layout; probability sums run over tokens in order. B sequences, E experts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/batch.h"
#include "moe/routing.h"

namespace conclave::moe {

struct RouterStatistics {
  int64_t experts = 0;  // see Choice
  HomeColumns home;
  int64_t sequences = 0, top_k = 0;
  std::vector<int64_t> tokens_B;    // that are not padding
  std::vector<double> targets_B;    // that count in the loss
  std::vector<int64_t> chosen_BE;   // by unbiased scores, before drops: what the auxiliary losses count
  std::vector<int64_t> first_BE;    // first choices only
  std::vector<double> affinity_BE;  // sums of probabilities (of row-normalised scores under sigmoid)
  std::vector<int64_t> selected_E;  // by the selection that was used (bias included), before drops: loss-free balancing
  std::vector<int64_t> dispatched_E;  // after drops; true experts alone
  double lse_squared = 0;             // sum over tokens
  double entropy = 0;                 // sum over tokens of the affinities' entropy, nats
  std::vector<double> sums;           // what the router counts for itself
  int64_t dropped = 0;

  int64_t tokens() const;
  double targets() const;
};

// `dispatched` is the routing of the whole micro-batch, `top_k` the picks of a token where all have equally many.
RouterStatistics gather_statistics(const Choice& choice, const Routing& dispatched, const Batch& batch, int64_t top_k);

}  // namespace conclave::moe
