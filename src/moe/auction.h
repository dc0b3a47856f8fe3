// SPDX-License-Identifier: Apache-2.0
// Balanced assignment by auction (Bertsekas 1992; of similar objects: Bertsekas and Castañón 1989): rows bid for
// columns of equal capacity, each for the one that is worth most to it at today's prices, raising its price by what
// it is worth above the second one plus epsilon. The total is within rows · epsilon of the best. One thread, in order:
// the same everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace conclave::moe {

struct AuctionRules {
  double epsilon = 1e-4;  // in the units of the values
  int64_t most_bids = 0;  // afterwards each row that has none takes the best column with room
};

// The column of each row of `values_RE`, finite; a column gets at most ceil(R / E) rows, which is R / E of each where E
// divides R.
std::vector<int32_t> balanced_assignment(std::span<const double> values_RE, int64_t columns, const AuctionRules& rules);

}  // namespace conclave::moe
