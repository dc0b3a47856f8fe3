// SPDX-License-Identifier: Apache-2.0
#include "model/executor.h"

namespace conclave::model {

void SequentialExecutor::run(const Transformer& model, nn::Frame& frame) const {
  const auto& stages = model.stages();
  for (const auto& stage : stages) stage->forward(frame);
  if (!frame.training()) return;
  for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
    (*stage)->backward_input(frame);
    (*stage)->backward_weight(frame);
    // Nothing before this stage reads its outputs again.
    for (const nn::Slot slot : (*stage)->outputs()) {
      frame.grad(slot) = Tensor();
      frame.value(slot) = Tensor();
    }
  }
  frame.gradients().fresh = false;
}

}  // namespace conclave::model
