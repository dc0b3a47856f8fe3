// SPDX-License-Identifier: Apache-2.0
#include "moe/dispatcher_choice.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <set>

#include "config/fields.h"
#include "core/error.h"

namespace conclave::moe {

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
