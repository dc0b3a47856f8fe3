// SPDX-License-Identifier: Apache-2.0
// Ends a process whose step no longer moves: a hung collective gives no error, only silence. Its thread never calls
// MPI, which may be what hangs; the launcher ends the other ranks when this one is gone. Whom the others wait for it
// learns from a roll call.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/activity.h"
#include "comm/roll_call.h"

namespace conclave::comm {

class Watchdog {
 public:
  // What to do when nothing has moved. `report` says which rank, step and operation, and for how long.
  using Action = std::function<void(const std::string& report)>;
  // Prints the report and ends the process at once with exit code 80, running no destructors.
  static void print_and_exit(const std::string& report);

  // Watches from now on; `seconds` <= 0 watches nothing. `action` runs on the watchdog's thread, once. `activity` tells
  // who waits in a collective from who does not arrive there: the latter reports first and so ends the job alone. Of
  // those that wait, the lowest rank that answers `roll_call` (null: nobody is asked) speaks for all.
  Watchdog(double seconds, int rank, std::shared_ptr<Activity> activity, const RollCall* roll_call = nullptr,
           Action action = print_and_exit);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The step is alive and enters `operation` (text that lives for ever: a literal). Costs a few stores; any thread.
  void beat(int64_t step, const char* operation) { activity_->beat(step, operation); }

 private:
  using Clock = Activity::Clock;
  void watch();
  Clock::time_point deadline() const;
  bool speaks(const std::vector<RollCall::Answer>& answers) const;
  std::string report(const std::vector<RollCall::Answer>& answers) const;

  double seconds_;
  int rank_;
  std::shared_ptr<Activity> activity_;
  const RollCall* roll_call_;
  Action action_;
  double deference_ = 0;  // seconds given to a lower rank to speak first
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace conclave::comm
