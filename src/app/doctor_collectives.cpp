// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_collectives.h"

#include <chrono>

#include "app/doctor_timing.h"

namespace conclave::app {
namespace {

double wall_clock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Cristian's method (Distributed Computing 3, 1989): the answer was written in the middle of the shortest round trip.
ClockFigures measure_clock(const comm::Group& two) {
  ClockFigures best{0, 1e9};
  for (int i = 0; i < 50; ++i) {
    std::vector<double> time{wall_clock()};
    const double asked = time[0];
    two.broadcast(std::span<double>(time), 0);
    time[0] = wall_clock();
    two.broadcast(std::span<double>(time), 1);
    const double answered = wall_clock();
    const double error = (answered - asked) / 2;
    if (error < best.error) best = {time[0] - (asked + error), error};
  }
  return best;
}

}  // namespace

std::vector<CollectiveFigures> measure_collectives(const comm::Group& group, std::span<const int64_t> sizes,
                                                   double seconds) {
  std::vector<CollectiveFigures> all;
  for (const int64_t bytes : sizes) {
    const auto n = static_cast<size_t>(group.size());
    std::vector<std::byte> send(n * bytes), recv(n * bytes);
    std::vector<float> sum(bytes / sizeof(float));
    CollectiveFigures figures{.bytes = bytes};
    figures.all_to_all = time_exchange(group, seconds, [&] {
                           group.all_to_all(std::span<const std::byte>(send), std::span(recv));
                         }).median;
    figures.all_reduce = time_exchange(group, seconds, [&] { group.all_reduce(std::span<float>(sum)); }).median;
    all.push_back(figures);
  }
  return all;
}

double all_to_all_rate(const CollectiveFigures& figures, int ranks) {
  return static_cast<double>(figures.bytes) * (ranks - 1) / figures.all_to_all;
}

double all_reduce_rate(const CollectiveFigures& figures, int ranks) {
  return static_cast<double>(figures.bytes) * 2 * (ranks - 1) / ranks / figures.all_reduce;
}

nlohmann::json to_json(const std::vector<CollectiveFigures>& figures, int ranks) {
  auto json = nlohmann::json::array();
  for (const auto& one : figures)
    json.push_back({{"bytes", one.bytes},
                    {"all_to_all_seconds", one.all_to_all},
                    {"all_to_all_bytes_per_second", all_to_all_rate(one, ranks)},
                    {"all_reduce_seconds", one.all_reduce},
                    {"all_reduce_bytes_per_second", all_reduce_rate(one, ranks)}});
  return json;
}

std::vector<ClockFigures> measure_clocks(const comm::Group& group) {
  ClockFigures own;
  for (int peer = 1; peer < group.size(); ++peer) {
    const bool takes_part = group.rank() == 0 || group.rank() == peer;
    const comm::Group two = group.split(takes_part ? 0 : 1, group.rank());
    if (!takes_part) continue;
    // Only the one who asked knows; the other is told.
    std::vector<ClockFigures> answer{measure_clock(two)};
    two.broadcast(std::span<ClockFigures>(answer), 0);
    if (group.rank() == peer) own = answer[0];
  }
  return group.all_gather_value(own);
}

}  // namespace conclave::app
