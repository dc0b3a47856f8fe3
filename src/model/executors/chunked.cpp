// SPDX-License-Identifier: Apache-2.0
#include "model/executors/overlapped.h"
#include "model/walk.h"

namespace conclave::model {

void ChunkedExecutor::run(const MicroBatches& micro_batches) const {
  for (int64_t i = 0; i < micro_batches.count; ++i) {
    nn::Frame frame = micro_batches.begin(i);
    Walk walk(model_, schedule_, frame, timeline_, &micro_batches.hooks);
    while (!walk.done()) walk.advance();
    micro_batches.end(i, frame);
  }
}

}  // namespace conclave::model
