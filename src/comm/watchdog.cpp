// SPDX-License-Identifier: Apache-2.0
#include "comm/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "core/error.h"

namespace conclave::comm {

void Watchdog::print_and_exit(const std::string& report) {
  std::fputs((report + "\n").c_str(), stderr);
  std::fflush(stderr);
  _exit(static_cast<int>(ExitCode::kHang));
}

Watchdog::Watchdog(double seconds, int rank, std::shared_ptr<const Activity> activity, Action action)
    : seconds_(seconds),
      rank_(rank),
      activity_(std::move(activity)),
      action_(std::move(action)),
      last_beat_(Clock::now().time_since_epoch().count()) {
  if (seconds_ > 0) thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::beat(int64_t step, const char* operation) {
  step_.store(step, std::memory_order_relaxed);
  operation_.store(operation, std::memory_order_relaxed);
  last_beat_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
}

// Who waits for others gives them time to speak first, and the launcher time to end the job; among those, rank 0 speaks
// for all.
Watchdog::Clock::time_point Watchdog::deadline() const {
  const Clock::time_point beat{Clock::duration(last_beat_.load(std::memory_order_relaxed))};
  const bool waits = activity_ != nullptr && activity_->collective() != nullptr;
  const double patience = !waits ? 0 : rank_ == 0 ? 3 : 6;
  return beat + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds_ + patience));
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto end = deadline();
    const auto now = Clock::now();
    if (now < end) {
      stop_.wait_until(lock, end);
      continue;
    }
    lock.unlock();
    const Clock::time_point beat{Clock::duration(last_beat_.load(std::memory_order_relaxed))};
    action_(report(std::chrono::duration<double>(now - beat).count()));
    return;
  }
}

std::string Watchdog::report(double elapsed) const {
  const char* collective = activity_ != nullptr ? activity_->collective() : nullptr;
  const std::string suspect =
      collective == nullptr
          ? "This rank itself does not go on: it computes, reads or writes, and the others wait for it"
          : fmt::format("It waits in {} for a peer that has died, hangs or is much slower, or the network is cut",
                        collective);
  return fmt::format(
      "rank {}: nothing has moved for {:.1f} s (train.hang_timeout is {:g} s): step {}, in {}. {}. The job ends with "
      "code {}; the same command continues from the last checkpoint.",
      rank_, elapsed, seconds_, step_.load(std::memory_order_relaxed), operation_.load(std::memory_order_relaxed),
      suspect, static_cast<int>(ExitCode::kHang));
}

}  // namespace conclave::comm
