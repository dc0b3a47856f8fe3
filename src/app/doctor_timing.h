// SPDX-License-Identifier: Apache-2.0
// How long an exchange takes: repeated until it has taken a given time, the slowest rank counts each time.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "comm/group.h"

namespace conclave::app {

struct Timing {
  double best = 0;    // seconds
  double median = 0;  // seconds
};

// Collective: every rank of `group` runs `exchange`, once to warm up and then as often as fits into `seconds` (between
// 3 and 200 times). The same answer on all ranks.
Timing time_exchange(const comm::Group& group, double seconds, auto&& exchange) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  exchange();  // opens connections
  group.barrier();
  auto start = Clock::now();
  exchange();
  std::vector<double> once{since(start)};
  group.all_reduce(std::span<double>(once), comm::Reduce::kMax);
  std::vector<double> times(static_cast<size_t>(std::clamp(seconds / std::max(once[0], 1e-7), 3.0, 200.0)));
  for (double& time : times) {
    group.barrier();
    start = Clock::now();
    exchange();
    time = since(start);
  }
  group.all_reduce(std::span<double>(times), comm::Reduce::kMax);
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

}  // namespace conclave::app
