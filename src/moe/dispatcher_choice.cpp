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

bool on_one_host(const std::vector<int>& hosts) {
  return std::all_of(hosts.begin(), hosts.end(), [&](int host) { return host == hosts[0]; });
}

// Whoever is to be told that rounding does nothing here.
std::string with_payload(std::string reason, const DispatchNeeds& needs, const std::vector<int>& hosts) {
  if (needs.payload == DispatchPayload::kSame) return reason;
  const std::string_view name = config::enum_name(needs.payload);
  const std::string note = on_one_host(hosts) && !needs.parts_over_hosts
                               ? fmt::format("payload {} changes nothing: no row crosses between hosts", name)
                               : fmt::format("rows between hosts as {}", name);
  return reason.empty() ? note : fmt::format("{}; {}", reason, note);
}

struct Ranks {
  const comm::Group& ep;
  const std::vector<int>& hosts;
};

DispatchChoice choose_on_one_host(const Ranks& ranks, const HostMemory& memory) {
  if (memory.bytes < kLeastRoom * memory.ranks)
    return {
        DispatchType::kAllToAll,
        fmt::format("alltoall: /dev/shm has {} MiB left for the {} ranks of the host, and shared wants {} for each; "
                    "make it larger (docker run --shm-size)",
                    memory.bytes >> 20, memory.ranks, kLeastRoom >> 20)};
  return {DispatchType::kShared,
          fmt::format("shared: the {} ranks of an ep group are on one host and write into each other's memory",
                      ranks.ep.size())};
}

DispatchChoice choose_over_hosts(const Ranks& ranks, const DispatchNeeds& needs) {
  const DispatchPlaces places{ranks.ep.size(), std::ssize(std::set<int>(ranks.hosts.begin(), ranks.hosts.end()))};
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
    const double cost = dispatch_cost(one, places, needs);
    if (cost < dispatch_cost(best, places, needs)) best = one;
    costs += fmt::format("{}{} {:.1f}", costs.empty() ? "" : ", ", config::enum_name(one), cost);
  }
  return {best, fmt::format("{}: {}; estimated row copies for each token and way: {}", config::enum_name(best), where,
                            costs)};
}

}  // namespace

HostMemory host_memory(const comm::Group& world) {
  HostMemory memory{.ranks = 0, .bytes = std::numeric_limits<int64_t>::max()};
  std::error_code absent;
  const auto space = std::filesystem::space("/dev/shm", absent);
  if (!absent && world.transport_name() == "mpi") memory.bytes = static_cast<int64_t>(space.available);
  const auto hosts = world.hosts();
  const auto all = world.all_gather_value(memory.bytes);
  for (int r = 0; r < world.size(); ++r) {
    if (hosts[r] != hosts[world.rank()]) continue;
    ++memory.ranks;
    memory.bytes = std::min(memory.bytes, all[r]);
  }
  return memory;
}

double dispatch_cost(DispatchType type, const DispatchPlaces& places, const DispatchNeeds& needs) {
  const auto n = static_cast<double>(places.ranks), H = static_cast<double>(places.hosts);
  const auto k = static_cast<double>(needs.top_k);
  const double bytes_share = needs.payload == DispatchPayload::kFp8    ? 0.25
                             : needs.payload == DispatchPayload::kBf16 ? 0.5
                                                                       : 1.0;
  const double link = kLinkCost * bytes_share;
  switch (type) {
    case DispatchType::kShared:
      return k;
    case DispatchType::kAllToAll:
      return link * k * (1 - 1 / H) + 3 * k;
    case DispatchType::kAllGather:
      return link * (n - n / H) + n + k;
    case DispatchType::kHierarchical:
      return link * (H - 1) * (1 - std::pow(1 - 1 / H, k)) + 3 * k + H;
    case DispatchType::kAuto:
    case DispatchType::kLocal:
      break;
  }
  throw BugError("internal error: this dispatcher exchanges nothing");
}

DispatchChoice choose_dispatcher(DispatchType type, const DispatchNeeds& needs, const comm::Group& ep,
                                 const HostMemory& memory) {
  const std::vector<int> hosts = ep.hosts();
  DispatchChoice choice{type, ""};
  if (type == DispatchType::kAuto && ep.size() == 1) choice.type = DispatchType::kLocal;
  if (choice.type == DispatchType::kAuto)
    choice = on_one_host(hosts) ? choose_on_one_host({ep, hosts}, memory) : choose_over_hosts({ep, hosts}, needs);
  choice.reason = with_payload(std::move(choice.reason), needs, hosts);
  return choice;
}

}  // namespace conclave::moe
