// SPDX-License-Identifier: Apache-2.0
#include "model/executor.h"

namespace conclave::model {

void SequentialExecutor::run(const Transformer& model, nn::Frame& frame) const {
  forward(model, frame);
  if (!frame.training()) return;
  backward(model, frame);
  frame.gradients().fresh = false;
}

void SequentialExecutor::forward(const Transformer& model, nn::Frame& frame) {
  const auto& stages = model.stages();
  for (size_t s = 0; s < stages.size(); ++s) {
    stages[s]->forward(frame);
    if (!frame.training()) continue;
    const auto& memory = model.stage_memory()[s];
    for (const nn::Slot slot : memory.unread) frame.value(slot) = Tensor();
    for (const size_t dropped : memory.dropped) {
      frame.forget(stages[dropped]->index());
      for (const nn::Slot slot : stages[dropped]->outputs()) frame.value(slot) = Tensor();
    }
  }
}

void SequentialExecutor::backward(const Transformer& model, nn::Frame& frame) {
  const auto& stages = model.stages();
  for (size_t s = stages.size(); s-- > 0;) {
    for (const size_t again : model.stage_memory()[s].again) stages[again]->forward_again(frame);
    stages[s]->backward_input(frame);
    stages[s]->backward_weight(frame);
    // Nothing before this stage reads its outputs again.
    for (const nn::Slot slot : stages[s]->outputs()) {
      frame.grad(slot) = Tensor();
      frame.value(slot) = Tensor();
    }
  }
}

}  // namespace conclave::model
