// SPDX-License-Identifier: Apache-2.0
#include "app/data_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace conclave::app {
namespace {

constexpr std::chrono::milliseconds kInterval(200);
constexpr std::string_view kEraseLine = "\r\x1b[K";

std::string clock_time(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  return whole < 3600 ? fmt::format("{}:{:02}", whole / 60, whole % 60)
                      : fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

}  // namespace

DataProgress::DataProgress(std::string what, int64_t total)
    : what_(std::move(what)),
      total_(std::max<int64_t>(total, 1)),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      shown_(start_) {}

DataProgress::~DataProgress() {
  if (terminal_ && shown_ != start_) fmt::print(stderr, "{}", kEraseLine);
}

double DataProgress::seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

void DataProgress::update(int64_t done) {
  const auto now = Clock::now();
  if (!terminal_ || now - shown_ < kInterval) return;
  shown_ = now;
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total_), 1e-9, 1.0);
  fmt::print(stderr, "{}{} {:5.1f} %, {} left", kEraseLine, what_, 100 * share,
             clock_time(seconds() * (1 - share) / share));
  std::fflush(stderr);
}

}  // namespace conclave::app
