// SPDX-License-Identifier: Apache-2.0
// Times of all-to-all and all-reduce by message size, as training calls them; and the clocks of the ranks against rank
// 0's.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "comm/group.h"

namespace conclave::app {

struct CollectiveFigures {
  int64_t bytes = 0;      // to each peer for all-to-all, in all for all-reduce
  double all_to_all = 0;  // seconds, median of many, the slowest rank each time
  double all_reduce = 0;
};

// Collective; about twice `seconds` for each size. The same figures on all ranks.
std::vector<CollectiveFigures> measure_collectives(const comm::Group& group, std::span<const int64_t> sizes,
                                                   double seconds);

// What a rank sends in all, per second: (n-1)·bytes, and 2(n-1)/n·bytes for the best all-reduce.
double all_to_all_rate(const CollectiveFigures& figures, int ranks);
double all_reduce_rate(const CollectiveFigures& figures, int ranks);

nlohmann::json to_json(const std::vector<CollectiveFigures>& figures, int ranks);

struct ClockFigures {
  double offset = 0;  // seconds ahead of rank 0's
  double error = 0;   // at most this wrong: half the round trip of the best exchange
};

// The wall clock of each rank. Collective; the same on all ranks.
std::vector<ClockFigures> measure_clocks(const comm::Group& group);

}  // namespace conclave::app
