// SPDX-License-Identifier: Apache-2.0
#include "core/random.h"

#include <gtest/gtest.h>

#include <cmath>

namespace conclave {
namespace {

// Known answers of Philox4x32-10 from the Random123 distribution (kat_vectors).
TEST(RandomTest, PhiloxGivesThePublishedAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(RandomTest, StreamsDifferInEveryPartOfTheirKey) {
  const Random base(1, Purpose::kTest, 5, 2);
  EXPECT_EQ(base.bits(9), Random(1, Purpose::kTest, 5, 2).bits(9));
  EXPECT_NE(base.bits(9), Random(2, Purpose::kTest, 5, 2).bits(9));
  EXPECT_NE(base.bits(9), Random(1, Purpose::kInit, 5, 2).bits(9));
  EXPECT_NE(base.bits(9), Random(1, Purpose::kTest, 6, 2).bits(9));
  EXPECT_NE(base.bits(9), Random(1, Purpose::kTest, 5, 3).bits(9));
  EXPECT_NE(base.bits(9), base.bits(10));
}

TEST(RandomTest, NormalHasMeanZeroAndVarianceOne) {
  const Random random(7, Purpose::kTest, "weights");
  double sum = 0, squares = 0;
  const int n = 200000;
  for (int i = 0; i < n; ++i) {
    const double x = random.normal(i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / n, 0.0, 0.01);
  EXPECT_NEAR(squares / n, 1.0, 0.01);
}

}  // namespace
}  // namespace conclave
