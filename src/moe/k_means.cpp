// SPDX-License-Identifier: Apache-2.0
#include "moe/k_means.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace conclave::moe {
namespace {

constexpr int64_t kGrain = 64, kMostRounds = 100;

double squared(double x) { return x * x; }

class KMeans {
 public:
  KMeans(std::span<const float> points, int64_t dimensions, int64_t clusters, const Random& random)
      : points_(points), D_(dimensions), C_(clusters), N_(std::ssize(points) / dimensions), random_(random) {}

  Clusters run() {
    begin();
    Clusters result{.dimensions = D_, .centres_CD = std::move(centres_), .of_N = std::vector<int32_t>(N_, -1)};
    bool changed = assign(result);
    for (int64_t round = 0; round < kMostRounds && changed; ++round) {
      move(result);
      changed = assign(result);
    }
    return result;
  }

 private:
  // From each point to the point `n`.
  std::vector<double> distances_to(int64_t n) const {
    std::vector<double> distances(N_);
    at::parallel_for(0, N_, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        double sum = 0;
        for (int64_t d = 0; d < D_; ++d) sum += squared(double{points_[i * D_ + d]} - points_[n * D_ + d]);
        distances[i] = sum;
      }
    });
    return distances;
  }

  // A point with probability proportional to its weight; the last one where all are zero.
  int64_t drawn(const std::vector<double>& weights, uint64_t draw) const {
    double left = random_.uniform(draw) * std::accumulate(weights.begin(), weights.end(), 0.0);
    for (int64_t i = 0; i < N_; ++i)
      if (weights[i] > 0 && (left -= weights[i]) < 0) return i;
    return N_ - 1;
  }

  // Of some candidates for one more centre, drawn by their squared distance, the one that leaves the smallest sum.
  void begin() {
    const int64_t candidates = 2 + static_cast<int64_t>(std::log(static_cast<double>(C_)));
    std::vector<double> nearest(N_, 1);
    for (int64_t c = 0; c < C_; ++c) {
      double least = std::numeric_limits<double>::infinity();
      std::vector<double> best;
      int64_t chosen = 0;
      for (int64_t tried = 0; tried < (c == 0 ? 1 : candidates); ++tried) {
        const int64_t n = drawn(nearest, c * candidates + tried);
        std::vector<double> with = distances_to(n);
        for (int64_t i = 0; i < N_ && c > 0; ++i) with[i] = std::min(with[i], nearest[i]);
        const double sum = std::accumulate(with.begin(), with.end(), 0.0);
        if (sum >= least) continue;
        least = sum, best = std::move(with), chosen = n;
      }
      nearest = std::move(best);
      centres_.insert(centres_.end(), points_.begin() + chosen * D_, points_.begin() + (chosen + 1) * D_);
    }
  }

  // Returns whether a point changed its cluster.
  bool assign(Clusters& clusters) const {
    // Centres lie side by side, so that the sums of one point run along them.
    std::vector<double> centres_DC(D_ * C_);
    for (int64_t c = 0; c < C_; ++c)
      for (int64_t d = 0; d < D_; ++d) centres_DC[d * C_ + c] = clusters.centres_CD[c * D_ + d];
    const std::vector<int32_t> before = clusters.of_N;
    at::parallel_for(0, N_, kGrain, [&](int64_t first, int64_t last) {
      std::vector<double> distance(C_);
      for (int64_t i = first; i < last; ++i) {
        std::fill(distance.begin(), distance.end(), 0.0);
        for (int64_t d = 0; d < D_; ++d)
          for (int64_t c = 0; c < C_; ++c) distance[c] += squared(points_[i * D_ + d] - centres_DC[d * C_ + c]);
        clusters.of_N[i] = static_cast<int32_t>(std::min_element(distance.begin(), distance.end()) - distance.begin());
      }
    });
    return clusters.of_N != before;
  }

  void move(Clusters& clusters) const {
    std::vector<double> sums(C_ * D_, 0.0);
    std::vector<int64_t> counts(C_, 0);
    for (int64_t i = 0; i < N_; ++i) {
      ++counts[clusters.of_N[i]];
      for (int64_t d = 0; d < D_; ++d) sums[clusters.of_N[i] * D_ + d] += points_[i * D_ + d];
    }
    for (int64_t c = 0; c < C_; ++c)
      for (int64_t d = 0; d < D_ && counts[c] > 0; ++d)
        clusters.centres_CD[c * D_ + d] = sums[c * D_ + d] / static_cast<double>(counts[c]);
  }

  std::span<const float> points_;
  int64_t D_, C_, N_;
  const Random& random_;
  std::vector<double> centres_;
};

}  // namespace

double Clusters::squared_distance(int64_t a, int64_t b) const {
  double sum = 0;
  for (int64_t d = 0; d < dimensions; ++d)
    sum += squared(centres_CD[a * dimensions + d] - centres_CD[b * dimensions + d]);
  return sum;
}

Clusters k_means(std::span<const float> points_ND, int64_t dimensions, int64_t clusters, const Random& random) {
  check(dimensions > 0 && clusters > 0 && !points_ND.empty() && std::ssize(points_ND) % dimensions == 0,
        "k-means groups points of one dimension");
  return KMeans(points_ND, dimensions, clusters, random).run();
}

}  // namespace conclave::moe
