// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatcher_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "config/fields.h"
#include "core/error.h"

namespace conclave::moe {

namespace {

// Below this `auto` does not count on shared memory: containers have 64 MiB unless told otherwise.
constexpr int64_t kLeastRoom = int64_t{256} << 20;

// Bytes left for the windows of processes, the least that a rank sees. Threads need none.
int64_t shared_room(const comm::Group& ep) {
  int64_t own = std::numeric_limits<int64_t>::max();
  std::error_code absent;
  const auto space = std::filesystem::space("/dev/shm", absent);
  if (!absent && ep.transport_name() == "mpi") own = static_cast<int64_t>(space.available);
  const auto all = ep.all_gather_value(own);
  return *std::min_element(all.begin(), all.end());
}

}  // namespace

double dispatch_cost(DispatchType type, const DispatchPlaces& places, int64_t top_k) {
  const auto n = static_cast<double>(places.ranks), H = static_cast<double>(places.hosts);
  const auto k = static_cast<double>(top_k);
  switch (type) {
    case DispatchType::kShared:
      return k;
    case DispatchType::kAllToAll:
      return kLinkCost * k * (1 - 1 / H) + 3 * k;
    case DispatchType::kAllGather:
      return kLinkCost * (n - n / H) + n + k;
    case DispatchType::kHierarchical:
      return kLinkCost * (H - 1) * (1 - std::pow(1 - 1 / H, k)) + 3 * k + H;
    case DispatchType::kAuto:
    case DispatchType::kLocal:
      break;
  }
  throw BugError("internal error: this dispatcher exchanges nothing");
}

DispatchChoice choose_dispatcher(DispatchType type, const DispatchNeeds& needs, const comm::Group& ep) {
  if (type != DispatchType::kAuto) return {type, ""};
  if (ep.size() == 1) return {DispatchType::kLocal, ""};
  const std::vector<int> hosts = ep.hosts();
  const DispatchPlaces places{ep.size(), std::ssize(std::set<int>(hosts.begin(), hosts.end()))};
  if (const int64_t room = shared_room(ep); places.hosts == 1 && room < kLeastRoom * places.ranks)
    return {DispatchType::kAllToAll,
            fmt::format("alltoall: /dev/shm has {} MiB left for {} ranks, and shared wants {} for each; make it larger "
                        "(docker run --shm-size)",
                        room >> 20, places.ranks, kLeastRoom >> 20)};
  if (places.hosts == 1)
    return {DispatchType::kShared,
            fmt::format("shared: the {} ranks of an ep group are on one host and write into each other's memory",
                        places.ranks)};
  const auto where = fmt::format("{} ranks of an ep group on {} hosts, {} experts for each token", places.ranks,
                                 places.hosts, needs.top_k);
  if (needs.bitwise)
    return {DispatchType::kAllToAll,
            fmt::format("alltoall: {}; reduction canonical keeps the order of sums, allgather and hierarchical do not",
                        where)};
  constexpr std::array kTypes = {DispatchType::kAllToAll, DispatchType::kAllGather, DispatchType::kHierarchical};
  DispatchType best = kTypes[0];
  std::string costs;
  for (const DispatchType one : kTypes) {
    const double cost = dispatch_cost(one, places, needs.top_k);
    if (cost < dispatch_cost(best, places, needs.top_k)) best = one;
    costs += fmt::format("{}{} {:.1f}", costs.empty() ? "" : ", ", config::enum_name(one), cost);
  }
  return {best, fmt::format("{}: {}; estimated row copies for each token and way: {}", config::enum_name(best), where,
                            costs)};
}

}  // namespace conclave::moe
