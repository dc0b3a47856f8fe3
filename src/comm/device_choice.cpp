// SPDX-License-Identifier: Apache-2.0
#include "comm/device_choice.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace conclave::comm {
namespace {

// Why a rank has no GPU of its own; empty when it has.
std::string obstacle(const device::Availability& own, int64_t ranks_on_host) {
  if (own.count == 0) return own.reason;
  if (own.count >= ranks_on_host) return "";
  return fmt::format("{} ranks share a host with {} GPU{}, and each rank needs one of its own; start fewer ranks there",
                     ranks_on_host, own.count, own.count == 1 ? "" : "s");
}

}  // namespace

DeviceChoice choose_device(const std::string& wanted, const Group& world, const device::Availability& own) {
  if (wanted == "cpu") return {};
  const std::vector<int> hosts = world.hosts();
  const int host = hosts[world.rank()];
  const auto local_rank = std::count(hosts.begin(), hosts.begin() + world.rank(), host);
  const auto ranks_on_host = std::count(hosts.begin(), hosts.end(), host);
  const std::vector<std::string> obstacles = world.all_gather_text(obstacle(own, ranks_on_host));
  const auto first = std::find_if(obstacles.begin(), obstacles.end(), [](const auto& text) { return !text.empty(); });
  if (first == obstacles.end()) return {true, static_cast<int>(local_rank), ""};
  const std::string who = world.size() == 1 ? "" : fmt::format("rank {}: ", first - obstacles.begin());
  if (wanted == "auto") return {false, 0, who + *first};
  throw ConfigError("train.device: {}: {}{}; or use train.device: cpu", wanted, who, *first);
}

}  // namespace conclave::comm
