// SPDX-License-Identifier: Apache-2.0
// One micro-batch on its way through a schedule, in steps that end where an exchange is about to be waited for: there
// another micro-batch may run. Not an executor: it does not know of others.
#pragma once

#include <map>

#include "core/timeline.h"
#include "model/executor.h"
#include "model/schedule.h"

namespace conclave::model {

class Walk {
 public:
  // All outlive the walk; `timeline` and `hooks` may be null. Backward follows forward where the frame has gradients.
  Walk(const Transformer& model, const Schedule& schedule, nn::Frame& frame, Timeline* timeline,
       const WeightHooks* hooks = nullptr);
  bool done() const { return next_ == operations_.size(); }
  // Waits for the exchange where the last call ended, and goes on to where the next one would be waited for, or to the
  // end.
  void advance();

 private:
  void run(const Operation& operation);
  void call(const Operation& operation);
  void compute_aside(size_t stage);
  void record(const Operation& operation);
  void tell(const std::function<void(size_t stage)> WeightHooks::*hook, size_t stage) const;

  const Transformer& model_;
  nn::Frame& frame_;
  Timeline* timeline_;
  const WeightHooks* hooks_;
  std::vector<Operation> operations_;
  size_t next_ = 0;
  std::map<size_t, std::vector<Tensor>> aside_;  // gradients of each input that are not added yet
  std::map<size_t, int64_t> started_;            // when exchanges were, for the timeline
};

}  // namespace conclave::model
