// SPDX-License-Identifier: Apache-2.0
// After an update with sharded optimizer state: brings every owner's new weights to all ranks, bucket by bucket in the
// order in which stages use them, while the next forward computes. Updates nothing itself.
#pragma once

#include <deque>

#include "core/timeline.h"
#include "model/buckets.h"

namespace conclave::train {

class WeightGather {
 public:
  // `parameters` and `timeline` outlive it. `stages` is how many the model has.
  WeightGather(const model::Buckets& buckets, const model::Ownership& owned, nn::Parameters& parameters, size_t stages,
               Timeline& timeline);
  // Every rank has updated what it owns. Collective, as are the others: every rank calls all of them in one order.
  void start();
  // Before a stage reads its parameters: waits for those, and goes on with what comes after them.
  void wait_for(size_t stage);
  // Waits for all: before anybody but a stage reads weights.
  void finish();

 private:
  struct UnderWay {
    comm::Work work;
    int64_t began;
  };
  void start_next();
  void finish_next();

  model::Ownership owned_;
  nn::Parameters& parameters_;
  Timeline& timeline_;
  std::vector<model::BucketId> order_;  // of what has to travel
  std::vector<std::string> names_;      // of these
  std::vector<size_t> needed_;          // by stage: how many of them have to be there
  size_t started_ = 0, finished_ = 0;   // of them since start(); at rest all
  std::deque<UnderWay> under_way_;
};

}  // namespace conclave::train
