// SPDX-License-Identifier: Apache-2.0
// One line on stderr that says how far a long job is and when it will be done. Shown on a terminal only, so logs stay
// clean.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace conclave::app {

class DataProgress {
 public:
  // `total` = units of work (bytes) in all.
  DataProgress(std::string what, int64_t total);
  ~DataProgress();
  DataProgress(const DataProgress&) = delete;
  DataProgress& operator=(const DataProgress&) = delete;

  // Shows `done` units, at most five times a second.
  void update(int64_t done);
  double seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  int64_t total_;
  bool terminal_;
  Clock::time_point start_;
  Clock::time_point shown_;
};

}  // namespace conclave::app
