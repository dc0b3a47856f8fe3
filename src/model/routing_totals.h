// SPDX-License-Identifier: Apache-2.0
// Routing figures of one optimizer step, summed over micro-batches and ranks: what balancing and reports need of every
// MoE layer.
#pragma once

#include <vector>

#include "comm/group.h"
#include "model/transformer.h"

namespace conclave::model {

struct LayerTotals {
  std::vector<int64_t> chosen_E, selected_E, dispatched_E;  // see moe::RouterStatistics
  int64_t tokens = 0, dropped = 0;
  double entropy = 0, lse_squared = 0;  // sums over tokens
  std::vector<double> losses;           // raw value of each auxiliary loss, weighted by targets
  double targets = 0;
};

class RoutingTotals {
 public:
  explicit RoutingTotals(const Transformer& model);
  void add(const Transformer& model, nn::Frame& frame);
  // Sums over the data-parallel group; collective. Integers are exact; doubles are gathered and added in rank order.
  void reduce(const comm::Group& dp);
  const std::vector<LayerTotals>& layers() const { return layers_; }
  // Moves biases and remembers counts, once per optimizer step after reduce().
  void end_step(Transformer& model) const;

 private:
  std::vector<LayerTotals> layers_;
};

}  // namespace conclave::model
