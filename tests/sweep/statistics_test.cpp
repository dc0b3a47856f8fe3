// SPDX-License-Identifier: Apache-2.0
#include "sweep/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace conclave::sweep {
namespace {

TEST(SweepStatistics, GiveMeanAndStandardError) {
  const std::vector<double> values{2, 4, 4, 6};
  const Summary summary = summarise(values);
  EXPECT_EQ(summary.count, 4);
  EXPECT_DOUBLE_EQ(summary.mean, 4);
  EXPECT_DOUBLE_EQ(summary.error, std::sqrt((4.0 + 0 + 0 + 4) / 3 / 4));
  EXPECT_EQ(summarise(std::vector<double>{3}).error, 0);
  EXPECT_EQ(summarise({}).count, 0);
}

TEST(SweepStatistics, PairWhatBelongsTogether) {
  // A common trend over seeds of 10 leaves the differences 1, 2, 3.
  const std::vector<double> a{11, 22, 33}, b{10, 20, 30};
  const Difference difference = paired_difference(a, b);
  EXPECT_EQ(difference.pairs, 3);
  EXPECT_DOUBLE_EQ(difference.mean, 2);
  // s.e. 1 / sqrt(3), t of two degrees of freedom 4.3027.
  EXPECT_NEAR(difference.high - 2, 4.3027 / std::sqrt(3), 1e-4);
  EXPECT_NEAR(2 - difference.low, 4.3027 / std::sqrt(3), 1e-4);
  const std::vector<double> one{1}, two{3};
  EXPECT_FALSE(paired_difference(one, two).has_interval());
}

TEST(SweepStatistics, KnowStudentsT) {
  EXPECT_NEAR(student_t(1), 12.706, 1e-3);
  EXPECT_NEAR(student_t(10), 2.2281, 1e-4);
  EXPECT_NEAR(student_t(30), 2.0423, 1e-4);
  EXPECT_NEAR(student_t(31), 2.0395, 1e-4);
  EXPECT_NEAR(student_t(60), 2.0003, 1e-4);
  EXPECT_NEAR(student_t(1000), 1.9623, 1e-4);
}

}  // namespace
}  // namespace conclave::sweep
