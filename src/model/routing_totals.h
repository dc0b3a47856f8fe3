// SPDX-License-Identifier: Apache-2.0
// Routing figures of one optimizer step, summed over micro-batches and ranks: what balancing and reports need of every
// MoE layer.
#pragma once

#include <vector>

#include "comm/group.h"
#include "model/transformer.h"
#include "moe/step_totals.h"

namespace conclave::model {

class RoutingTotals {
 public:
  explicit RoutingTotals(const Transformer& model);
  // Of a micro-batch whose forward has run on the host path; or of decisions of which the statistics are known.
  void add(const Transformer& model, nn::Frame& frame);
  void add(const Transformer& model, const moe::LossView& view);
  // Sums over the data-parallel group; collective. Integers are exact; doubles are added over all micro-batches in one
  // tree, so that dp does not change a bit of them. Every rank has added equally many.
  void reduce(const comm::Group& dp);
  // Sums what every rank has counted of its own, what experts gave and rows that were sent: over all ranks, collective.
  // Exact in any layout.
  void reduce_own(const comm::Group& world);
  const std::vector<moe::StepTotals>& layers() const { return layers_; }
  // Moves biases and what else methods carry on, once per optimizer step after reduce().
  void end_step(Transformer& model) const;

 private:
  std::vector<moe::StepTotals> layers_;
  std::vector<double> sums_;  // doubles of each micro-batch, one after the other
};

}  // namespace conclave::model
