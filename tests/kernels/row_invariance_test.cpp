// SPDX-License-Identifier: Apache-2.0
// Measures on the machine that runs it what `reduction: canonical` stands on (build.md, row independence). Where the
// BLAS does not have the property, the start-up check must say so, and these tests fail to tell that canonical is not
// available here.
#include "kernels/row_invariance.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace conclave::kernels {
namespace {

// Attention, router, expert and head shapes, odd sizes among them; columns of 8 or more.
constexpr ProductShape kShapes[] = {{256, 256}, {512, 1408}, {64, 8},    {64, 64},    {1408, 512},
                                    {2752, 96}, {333, 77},   {768, 512}, {130, 1000}, {256, 2049}};
constexpr int64_t kPaddedRows[] = {16, 32, 48, 64, 80, 112, 128, 160, 208, 240, 256};
constexpr int kThreads[] = {1, 2, 3};

TEST(RowInvarianceTest, RowsKeepTheirBitsForMultiplesOfSixteenAndAnyThreads) {
  std::string difference;
  EXPECT_TRUE(rows_are_invariant({kShapes, kPaddedRows, kThreads}, &difference)) << difference;
}

TEST(RowInvarianceTest, WeightGradientsKeepTheirBitsForAnyThreads) {
  std::string difference;
  EXPECT_TRUE(weight_gradients_are_invariant({kShapes, kPaddedRows, kThreads}, &difference)) << difference;
}

TEST(RowInvarianceTest, TheProbeSeesADifferenceWhereThereIsOne) {
  // One row is another BLAS routine (a matrix-vector product): the reason for the padding rule.
  constexpr ProductShape kShape[] = {{512, 1408}};
  constexpr int64_t kOneRow[] = {1};
  constexpr int kOneThread[] = {1};
  std::string difference;
  if (rows_are_invariant({kShape, kOneRow, kOneThread}, &difference))
    GTEST_SKIP() << "this BLAS keeps even single rows";
  EXPECT_EQ(difference, "the forward product of 1 rows, depth 512, 1408 columns, 1 threads");
}

TEST(RowInvarianceTest, StartUpCheckPassesAndRestoresTheThreads) {
  at::set_num_threads(2);
  EXPECT_EQ(canonical_obstacle(2, kShapes), "");
  EXPECT_EQ(at::get_num_threads(), 2);
  at::set_num_threads(1);
}

}  // namespace
}  // namespace conclave::kernels
