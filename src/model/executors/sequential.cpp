// SPDX-License-Identifier: Apache-2.0
#include "model/executors/sequential.h"

namespace conclave::model {

void SequentialExecutor::run(const MicroBatches& micro_batches) const {
  for (int64_t i = 0; i < micro_batches.count; ++i) {
    nn::Frame frame = micro_batches.begin(i);
    run(frame, micro_batches.hooks);
    micro_batches.end(i, frame);
  }
}

void SequentialExecutor::run(nn::Frame& frame, const WeightHooks& hooks) const {
  forward(frame, hooks);
  if (!frame.training()) return;
  backward(frame, hooks);
  frame.gradients().fresh = false;
}

void SequentialExecutor::forward(nn::Frame& frame, const WeightHooks& hooks) const {
  const auto& stages = model_.stages();
  for (size_t s = 0; s < stages.size(); ++s) {
    if (hooks.before_forward) hooks.before_forward(s);
    {
      const Span span(timeline_, stages[s]->name(), "forward", frame.batch().index);
      stages[s]->forward(frame);
    }
    frame.poll();
    free_after_forward(stages, model_.stage_memory()[s], s, frame);
  }
}

void SequentialExecutor::backward(nn::Frame& frame, const WeightHooks& hooks) const {
  const auto& stages = model_.stages();
  const int64_t micro_batch = frame.batch().index;
  for (size_t s = stages.size(); s-- > 0;) {
    for (const size_t again : model_.stage_memory()[s].again) {
      const Span span(timeline_, stages[again]->name(), "forward again", micro_batch);
      stages[again]->forward_again(frame);
    }
    {
      const Span span(timeline_, stages[s]->name(), "backward", micro_batch);
      stages[s]->backward_input(frame);
    }
    {
      const Span span(timeline_, stages[s]->name(), "weight gradients", micro_batch);
      stages[s]->backward_weight(frame);
    }
    if (hooks.written) hooks.written(s);
    frame.poll();
    // Nothing before this stage reads its outputs again.
    for (const nn::Slot slot : stages[s]->outputs()) {
      frame.grad(slot) = Tensor();
      frame.value(slot) = Tensor();
    }
  }
}

}  // namespace conclave::model
