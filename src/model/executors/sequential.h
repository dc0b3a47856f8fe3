// SPDX-License-Identifier: Apache-2.0
// One micro-batch after another, stage by stage, waiting for every exchange: the reference that others must equal.
#pragma once

#include "model/executor.h"

namespace conclave::model {

class SequentialExecutor : public Executor {
 public:
  explicit SequentialExecutor(const Transformer& model, Timeline* timeline = nullptr)
      : model_(model), timeline_(timeline) {}
  void run(const MicroBatches& micro_batches) const override;
  // One frame: forward, and backward when it has gradients.
  void run(nn::Frame& frame, const WeightHooks& hooks = {}) const;
  // The halves of it.
  void forward(nn::Frame& frame, const WeightHooks& hooks = {}) const;
  void backward(nn::Frame& frame, const WeightHooks& hooks = {}) const;

 private:
  const Transformer& model_;
  Timeline* timeline_;
};

}  // namespace conclave::model
