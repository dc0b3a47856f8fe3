// SPDX-License-Identifier: Apache-2.0
// Runs the stages of a model for one micro-batch. Every rank runs the same stages in the same order, so exchanges meet.
// One file per executor in executors/; the sequential one is the reference that others must equal.
#pragma once

#include "model/transformer.h"

namespace conclave::model {

class Executor {
 public:
  virtual ~Executor() = default;
  // Forward, and backward when the frame has gradients.
  virtual void run(const Transformer& model, nn::Frame& frame) const = 0;
};

class SequentialExecutor : public Executor {
 public:
  void run(const Transformer& model, nn::Frame& frame) const override;
  // The halves of run().
  static void forward(const Transformer& model, nn::Frame& frame);
  static void backward(const Transformer& model, nn::Frame& frame);
};

}  // namespace conclave::model
