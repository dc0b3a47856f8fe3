// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <vector>

#include "model/executors/overlapped.h"
#include "model/walk.h"

namespace conclave::model {
namespace {

struct Lane {
  int64_t micro_batch = 0;
  std::optional<nn::Frame> frame;
  std::optional<Walk> walk;  // empty: the lane is free
};

}  // namespace

// Turns go round and all walks have equally many: micro-batches end in the order in which they began.
void InterleavedExecutor::run(const MicroBatches& micro_batches) const {
  std::vector<Lane> lanes(in_flight_);
  for (int64_t begun = 0, ended = 0; ended < micro_batches.count;) {
    for (Lane& lane : lanes) {
      if (!lane.walk && begun < micro_batches.count) {
        lane.micro_batch = begun++;
        lane.frame.emplace(micro_batches.begin(lane.micro_batch));
        lane.walk.emplace(model_, schedule_, *lane.frame, timeline_, &micro_batches.hooks);
      }
      if (!lane.walk) continue;
      lane.walk->advance();
      if (!lane.walk->done()) continue;
      lane.walk.reset();
      micro_batches.end(lane.micro_batch, *lane.frame);
      lane.frame.reset();
      ++ended;
    }
  }
}

}  // namespace conclave::model
