// SPDX-License-Identifier: Apache-2.0
// Executors that compute while exchanges are under way (model/schedule.h has the order inside one micro-batch).
#pragma once

#include "model/executor.h"
#include "model/schedule.h"

namespace conclave::model {

// One micro-batch at a time. In a model built with TransformerConfig::chunks > 1 the chunks of its tokens pass
// dispatch, experts and combine one behind the other; in any model, what no exchange waits for runs beside it.
class ChunkedExecutor : public Executor {
 public:
  ChunkedExecutor(const Transformer& model, Timeline* timeline)
      : model_(model), timeline_(timeline), schedule_(plan_schedule(model.stages(), model.stage_memory())) {}
  void run(const MicroBatches& micro_batches) const override;

 private:
  const Transformer& model_;
  Timeline* timeline_;
  Schedule schedule_;
};

// Several micro-batches in flight: while one exchanges the others compute. They take turns and so begin and end in the
// same rounds, two by two or three by three; one that is alone still has its own work beside its exchanges.
class InterleavedExecutor : public Executor {
 public:
  InterleavedExecutor(const Transformer& model, int64_t in_flight, Timeline* timeline)
      : model_(model),
        in_flight_(in_flight),
        timeline_(timeline),
        schedule_(plan_schedule(model.stages(), model.stage_memory())) {}
  void run(const MicroBatches& micro_batches) const override;
  int64_t in_flight() const override { return in_flight_; }

 private:
  const Transformer& model_;
  int64_t in_flight_;
  Timeline* timeline_;
  Schedule schedule_;
};

}  // namespace conclave::model
