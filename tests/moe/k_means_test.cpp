// SPDX-License-Identifier: Apache-2.0
// k-means, which tables of hash layers go by.
#include "moe/k_means.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace conclave::moe {
namespace {

std::vector<float> points(int64_t count, int64_t dimensions) {
  const Random random(4, Purpose::kTest);
  std::vector<float> values;
  for (int64_t i = 0; i < count * dimensions; ++i) values.push_back(static_cast<float>(random.normal(i)));
  return values;
}

const Random kStart(1, Purpose::kHashTable, "k-means");

TEST(KMeans, EveryPointIsNearestToTheMeanOfItsCluster) {
  constexpr int64_t N = 300, D = 3, C = 7;
  const auto p = points(N, D);
  const Clusters clusters = k_means(p, D, C, kStart);
  ASSERT_EQ(clusters.count(), C);
  std::vector<double> sums(C * D, 0.0);
  std::vector<int64_t> counts(C, 0);
  for (int64_t i = 0; i < N; ++i) {
    ++counts[clusters.of_N[i]];
    std::vector<double> distance(C, 0.0);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t d = 0; d < D; ++d) {
        const double apart = p[i * D + d] - clusters.centres_CD[c * D + d];
        distance[c] += apart * apart;
      }
    for (int64_t d = 0; d < D; ++d) sums[clusters.of_N[i] * D + d] += p[i * D + d];
    EXPECT_EQ(std::min_element(distance.begin(), distance.end()) - distance.begin(), clusters.of_N[i]) << i;
  }
  for (int64_t c = 0; c < C; ++c)
    for (int64_t d = 0; d < D; ++d)
      EXPECT_NEAR(clusters.centres_CD[c * D + d], sums[c * D + d] / static_cast<double>(counts[c]), 1e-9);
  EXPECT_NEAR(clusters.squared_distance(0, 1), clusters.squared_distance(1, 0), 0);
}

TEST(KMeans, HasTheSameBitsWithAnyNumberOfThreads) {
  const auto p = points(2000, 8);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Clusters one = k_means(p, 8, 16, kStart);
  at::set_num_threads(2);
  const Clusters two = k_means(p, 8, 16, kStart);
  at::set_num_threads(threads);
  EXPECT_EQ(one.of_N, two.of_N);
  EXPECT_EQ(one.centres_CD, two.centres_CD);
  EXPECT_NE(k_means(p, 8, 16, Random(2, Purpose::kHashTable, "k-means")).of_N, one.of_N) << "another start";
}

TEST(KMeans, ManyClustersForFewPointsAreSafe) {
  EXPECT_EQ(k_means(std::vector<float>{1, 2}, 2, 4, kStart).of_N, std::vector<int32_t>{0});
  const Clusters equal = k_means(std::vector<float>(12, 3.0f), 2, 4, kStart);
  EXPECT_EQ(equal.of_N, std::vector<int32_t>(6, 0)) << "ties go to the lower number";
  const auto p = points(5, 2);
  const Clusters each = k_means(p, 2, 5, kStart);
  EXPECT_EQ(std::set<int32_t>(each.of_N.begin(), each.of_N.end()).size(), 5u);
}

}  // namespace
}  // namespace conclave::moe
