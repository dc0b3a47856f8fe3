// SPDX-License-Identifier: Apache-2.0
// k-means (Lloyd 1982): groups of points around their means, from a start that is drawn by k-means++ (Arthur and
// Vassilvitskii 2007), of several candidates each time the best. The same numbers for the same points and stream,
// whatever the number of threads: every sum has one order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/random.h"

namespace conclave::moe {

struct Clusters {
  int64_t dimensions = 0;          // D
  std::vector<double> centres_CD;  // of a cluster without points: where it last was
  std::vector<int32_t> of_N;       // the cluster of each point: its nearest centre, ties to the lower number

  int64_t count() const { return dimensions == 0 ? 0 : std::ssize(centres_CD) / dimensions; }
  double squared_distance(int64_t a, int64_t b) const;  // of two centres
};

// `points_ND` row-major, at least one. Stops when no point changes its cluster, after 100 rounds at the latest. Fewer
// different points than `clusters` leave clusters empty.
Clusters k_means(std::span<const float> points_ND, int64_t dimensions, int64_t clusters, const Random& random);

}  // namespace conclave::moe
