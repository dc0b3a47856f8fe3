// SPDX-License-Identifier: Apache-2.0
// Runs the micro-batches of a step through a model's stages, one file per way in executors/. Every rank runs the same
// operations in the same order, so exchanges meet. What the sums of a step come to, the caller decides: an executor
// only asks for a frame and gives it back.
#pragma once

#include <functional>
#include <memory>

#include "core/timeline.h"
#include "model/transformer.h"
#include "parallel/parallel_config.h"

namespace conclave::model {

// Told about the parameters of stages, in the order of the executor's operations, which is the same on every rank.
// Either may be empty.
struct WeightHooks {
  // The stage is about to run forward.
  std::function<void(size_t stage)> before_forward;
  // The stage has added its gradients of one micro-batch.
  std::function<void(size_t stage)> written;
};

struct MicroBatches {
  int64_t count = 0;
  // A frame for micro-batch i; asked for in order. Without gradients it is an evaluation.
  std::function<nn::Frame(int64_t i)> begin;
  // Micro-batch i has run; told in order.
  std::function<void(int64_t i, nn::Frame& frame)> end;
  WeightHooks hooks = {};
};

struct ExecutorChoice {
  parallel::ExecutorType type = parallel::ExecutorType::kSequential;
  int64_t in_flight = 2;  // micro-batches, of kInterleaved
};

class Executor {
 public:
  virtual ~Executor() = default;
  // Forward, and backward when a frame has gradients. Collective over the model's ep group; `count` is the same on all
  // its ranks.
  virtual void run(const MicroBatches& micro_batches) const = 0;
  // Frames that may have begun and not ended.
  virtual int64_t in_flight() const { return 1; }

  // Both outlive the executor; `timeline` may be null.
  static std::unique_ptr<Executor> make(const ExecutorChoice& choice, const Transformer& model,
                                        Timeline* timeline = nullptr);
};

}  // namespace conclave::model
