// SPDX-License-Identifier: Apache-2.0
// What a rank is doing, readable from another thread: which step, which part of it, since when, and in which
// collective. A rank that waits for others is not the one that hangs. It records; what to do with it is the watchdog's.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "comm/group.h"

namespace conclave::comm {

class Activity {
 public:
  using Clock = std::chrono::steady_clock;

  // "all_reduce" and the like; nullptr while this rank is outside of collectives.
  const char* collective() const { return collective_.load(std::memory_order_relaxed); }
  void enter(const char* collective) { collective_.store(collective, std::memory_order_relaxed); }

  // `operation` lives for ever: a literal. A few stores; any thread.
  void beat(int64_t step, const char* operation) {
    step_.store(step, std::memory_order_relaxed);
    operation_.store(operation, std::memory_order_relaxed);
    last_beat_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  }
  int64_t step() const { return step_.load(std::memory_order_relaxed); }
  const char* operation() const { return operation_.load(std::memory_order_relaxed); }
  Clock::time_point last_beat() const {
    return Clock::time_point(Clock::duration(last_beat_.load(std::memory_order_relaxed)));
  }

 private:
  std::atomic<const char*> collective_{nullptr};
  std::atomic<const char*> operation_{"start"};
  std::atomic<int64_t> step_{0};
  std::atomic<Clock::rep> last_beat_{Clock::now().time_since_epoch().count()};
};

// While it lives, its thread is inside of a collective, or waits for its own device. `what` lives for ever: a literal.
class Inside {
 public:
  Inside(Activity& activity, const char* what) : activity_(activity), outer_(activity.collective()) {
    activity_.enter(what);
  }
  ~Inside() { activity_.enter(outer_); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  Activity& activity_;
  const char* outer_;  // a group may be built on another
};

// What a rank is inside of while it waits for its GPU, where the exchanges of NCCL end: like one in a collective, it
// may be held up by another rank.
inline constexpr const char* kDeviceWait = "device wait";

// `transport`, which writes into `activity` what it is doing, and so do its splits.
std::shared_ptr<Transport> make_observed(std::shared_ptr<Transport> transport, std::shared_ptr<Activity> activity);

}  // namespace conclave::comm
