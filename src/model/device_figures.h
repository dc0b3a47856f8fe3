// SPDX-License-Identifier: Apache-2.0
// Loss and routing figures of micro-batches of the device path. They stay on the device while the micro-batches run;
// one read brings those of all of them, with whatever else the caller wants to know.
#pragma once

#include <vector>

#include "model/routing_totals.h"

namespace conclave::model {

class DeviceFigures {
 public:
  // `model` outlives it.
  explicit DeviceFigures(const Transformer& model) : model_(model) {}
  // Of a micro-batch whose forward has run.
  void add(nn::Frame& frame);
  // Waits for the device, once. `more`: fp64 numbers on the device that travel with the figures; returns them.
  std::vector<double> read(const std::vector<Tensor>& more = {});

  // Known after read(), in the order of add().
  const std::vector<double>& losses() const { return losses_; }
  // Of a teacher; empty without one.
  const std::vector<double>& teacher_losses() const { return teacher_losses_; }
  void add_to(RoutingTotals& totals) const;

 private:
  struct MicroBatch {
    std::vector<int64_t> tokens_B;
    std::vector<double> targets_B;
    std::vector<moe::Decision> layers;  // with statistics alone
    bool taught = false;
  };
  void unpack(std::span<const double>& numbers, MicroBatch& micro_batch);

  const Transformer& model_;
  std::vector<MicroBatch> micro_batches_;
  std::vector<Tensor> waiting_;  // loss, a teacher's loss, then statistics layer by layer
  std::vector<double> losses_, teacher_losses_;
};

}  // namespace conclave::model
