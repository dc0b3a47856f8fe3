// SPDX-License-Identifier: Apache-2.0
#include "comm/watchdog.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "core/error.h"

namespace conclave::comm {
namespace {

constexpr double kRollCallSeconds = 1;

}  // namespace

void Watchdog::print_and_exit(const std::string& report) {
  std::fputs((report + "\n").c_str(), stderr);
  std::fflush(stderr);
  _exit(static_cast<int>(ExitCode::kHang));
}

Watchdog::Watchdog(double seconds, int rank, std::shared_ptr<Activity> activity, const RollCall* roll_call,
                   Action action)
    : seconds_(seconds),
      rank_(rank),
      activity_(activity ? std::move(activity) : std::make_shared<Activity>()),
      roll_call_(roll_call),
      action_(std::move(action)) {
  activity_->beat(0, "start");
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

// Who waits for others gives them time to speak first, and the launcher time to end the job; among those, rank 0 speaks
// for all.
Watchdog::Clock::time_point Watchdog::deadline() const {
  const double patience = activity_->collective() == nullptr ? 0 : rank_ == 0 ? 3 : 5;
  const std::chrono::duration<double> limit(seconds_ + patience + deference_);
  return activity_->last_beat() + std::chrono::duration_cast<Clock::duration>(limit);
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto end = deadline();
    if (Clock::now() < end) {
      stop_.wait_until(lock, end);
      continue;
    }
    std::vector<RollCall::Answer> answers;
    if (roll_call_ != nullptr) answers = roll_call_->ask(kRollCallSeconds);
    if (Clock::now() < deadline()) continue;
    if (deference_ == 0 && !speaks(answers)) {
      deference_ = 5;
      continue;
    }
    lock.unlock();
    action_(report(answers));
    return;
  }
}

// Not where a lower rank is there to say the same.
bool Watchdog::speaks(const std::vector<RollCall::Answer>& answers) const {
  if (activity_->collective() == nullptr) return true;
  return std::none_of(answers.begin(), answers.begin() + std::min<ptrdiff_t>(rank_, std::ssize(answers)),
                      [](const RollCall::Answer& answer) { return answer.present && !answer.collective.empty(); });
}

std::string Watchdog::report(const std::vector<RollCall::Answer>& answers) const {
  const char* collective = activity_->collective();
  std::string suspect;
  const bool device = collective != nullptr && std::string_view(collective) == kDeviceWait;
  if (collective == nullptr)
    suspect = "This rank itself does not go on: it computes, reads or writes, and the others wait for it";
  else if (!answers.empty())
    suspect = fmt::format("It waits {}. {}", device ? "for its GPU" : fmt::format("in {}", collective),
                          describe_absence(answers, roll_call_->hosts()));
  else if (device)
    suspect = "It waits for its GPU, where something that was started does not end: look at nvidia-smi and dmesg";
  else
    suspect = fmt::format("It waits in {} for a peer that has died, hangs or is much slower, or the network is cut",
                          collective);
  const std::chrono::duration<double> elapsed = Clock::now() - activity_->last_beat();
  return fmt::format(
      "rank {}: nothing has moved for {:.1f} s (train.hang_timeout is {:g} s): step {}, in {}. {}. The job ends with "
      "code {}; the same command continues from the last checkpoint.",
      rank_, elapsed.count(), seconds_, activity_->step(), activity_->operation(), suspect,
      static_cast<int>(ExitCode::kHang));
}

}  // namespace conclave::comm
