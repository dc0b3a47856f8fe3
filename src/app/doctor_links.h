// SPDX-License-Identifier: Apache-2.0
// Latency and bandwidth between every two members of a group, two by two at the same time, and which member or pair is
// far from the rest. Members are hosts (one rank each) or the ranks of one host.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "comm/group.h"

namespace conclave::app {

struct LinkFigures {
  int a = 0, b = 0;      // members, a < b
  double latency = 0;    // seconds one way, best of many
  double bandwidth = 0;  // bytes per second one way, in the slower direction
};

// Rounds of a tournament in which everybody meets everybody once: rounds[i][m] is m's partner, m itself when it rests.
std::vector<std::vector<int>> meetings(int members);

// Collective; about `seconds` for each meeting, longer where the link is slow. All links, on every rank.
std::vector<LinkFigures> measure_links(const comm::Group& group, double seconds);

// A sentence for each member whose best link is far below what the others have among themselves, then for each link
// that is although both its ends are not. Empty for fewer than three members: nothing to compare with. `names` is by
// member, e.g. "host h2".
std::vector<std::string> odd_links(const std::vector<LinkFigures>& links, const std::vector<std::string>& names);

nlohmann::json to_json(const LinkFigures& link, const std::vector<std::string>& names);

}  // namespace conclave::app
