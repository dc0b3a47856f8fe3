// SPDX-License-Identifier: Apache-2.0
// The order of one direction: what the next exchange waits for first, everything else while one is under way. Private
// to schedule.cpp, which derives forward and backward from it.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "nn/stage.h"

namespace conclave::model {

class GreedyOrder {
 public:
  using Stages = std::vector<std::unique_ptr<nn::Stage>>;
  // By stage: those that must be complete before it.
  using Needs = std::vector<std::vector<size_t>>;

  // `order` are the stages to run, as the sequential order has them.
  GreedyOrder(const Stages& stages, std::vector<size_t> order, const Needs& needs);
  virtual ~GreedyOrder() = default;
  void run();

 protected:
  // Emits what computes the stage; false when it is not complete with that, but with a later set_complete().
  virtual bool compute(size_t stage) = 0;
  virtual void start(size_t stage) = 0;
  virtual void finish(size_t stage) = 0;
  // An exchange is under way and holds up the next one.
  virtual void window() {}
  // Some stage is complete.
  virtual void completed() {}
  // Whether nothing may be under way when the stage starts.
  virtual bool alone(size_t) const { return false; }

  bool complete(size_t stage) const;
  void set_complete(size_t stage);
  bool nothing_under_way() const { return under_way_.empty(); }
  // The first exchange not yet started, in order; null when none is left.
  const size_t* next_exchange() const;
  const Stages& stages() const { return stages_; }

 private:
  enum class State { kAbsent, kWaiting, kUnderWay, kAside, kComplete };

  std::vector<bool> before_next_exchange() const;
  std::vector<bool> computations() const;
  bool ready(size_t stage) const;
  bool issue_one(const std::vector<bool>& chosen);
  void finish_oldest();

  const Stages& stages_;
  std::vector<size_t> order_;
  const Needs& needs_;
  std::vector<State> states_;
  std::deque<size_t> under_way_;
};

}  // namespace conclave::model
