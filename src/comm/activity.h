// SPDX-License-Identifier: Apache-2.0
// Which collective a rank is in, readable from another thread: a rank that waits for others is not the one that hangs.
// It records; what to do with it is the watchdog's.
#pragma once

#include <atomic>
#include <memory>

#include "comm/group.h"

namespace conclave::comm {

class Activity {
 public:
  // "all_reduce" and the like; nullptr while this rank is outside of collectives.
  const char* collective() const { return collective_.load(std::memory_order_relaxed); }
  void enter(const char* collective) { collective_.store(collective, std::memory_order_relaxed); }
  void leave() { collective_.store(nullptr, std::memory_order_relaxed); }

 private:
  std::atomic<const char*> collective_{nullptr};
};

// `transport`, which writes into `activity` what it is doing, and so do its splits.
std::shared_ptr<Transport> make_observed(std::shared_ptr<Transport> transport, std::shared_ptr<Activity> activity);

}  // namespace conclave::comm
