// SPDX-License-Identifier: Apache-2.0
// The lease on a run directory: a LOCK file that names its owner and carries a counter which the owner moves. Others
// judge by watching the counter with their own clock; no decision uses file times or wall clocks. One process, no
// collectives.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "checkpoint/file.h"
#include "core/log.h"

namespace conclave::checkpoint {

struct LockTimes {
  double beat_seconds = 1;    // between two moves of the counter
  double lease_seconds = 30;  // a counter that stands still this long is abandoned
};

class Lock {
 public:
  // Takes `folder`/LOCK. An owner on this host whose process is gone loses it at once; any other must leave its counter
  // still for the whole lease. Throws OwnedError naming host, process and run as soon as the owner is seen to live.
  Lock(const std::filesystem::path& folder, const std::string& run_id, const LockTimes& times, Log& log);
  ~Lock();  // gives the lease back if it is still ours
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // Unique to this run of the program; leftovers carry it.
  const std::string& attempt() const { return attempt_; }
  // Moves the counter. Harmless after someone else took over. A thread calls it; callers need not.
  void beat();
  // Throws OwnedError if the lease has gone to someone else. Call before anything that others rely on becomes visible.
  void check_still_ours() const;

 private:
  void acquire(const LockTimes& times, Log& log);
  bool try_replace(const std::string& seen);
  void beat_until_stopped(double seconds);

  std::filesystem::path where_;
  std::string run_id_;
  std::string attempt_;
  std::unique_ptr<File> file_;  // our own LOCK: a successor's is another file
  int64_t count_ = 0;
  std::mutex mutex_;
  std::condition_variable stop_signal_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace conclave::checkpoint
