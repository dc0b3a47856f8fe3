// SPDX-License-Identifier: Apache-2.0
#include "kernels/rows.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "kernels/tensor_checks.h"

namespace conclave::kernels {
namespace {

TEST(RowsTest, GatherCopiesRowsAndZeroesPadding) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t columns : {1, 7, 64, 1000}) {
      const Tensor src = random_tensor({11, columns}, dtype, 1);
      for (const int64_t count : {0, 1, 50}) {
        const auto rows = random_indices(count, -3, 11, 2);
        Tensor dst = random_tensor({count, columns}, dtype, 3);
        gather_rows(src, rows, dst);
        for (int64_t i = 0; i < count; ++i) {
          expect_same_bits(dst[i], rows[i] < 0 ? at::zeros({columns}, dtype) : src[rows[i]], "row");
        }
      }
    }
  }
}

TEST(RowsTest, GatherRefusesRowsThatAreNotThere) {
  const Tensor src = random_tensor({3, 2}, at::kFloat, 1), none = random_tensor({0, 2}, at::kFloat, 1);
  Tensor dst = at::empty({1, 2}, at::kFloat);
  EXPECT_THROW(gather_rows(src, std::vector<int32_t>{3}, dst), BugError);
  EXPECT_THROW(gather_rows(none, std::vector<int32_t>{0}, dst), BugError);
  gather_rows(none, std::vector<int32_t>{-1}, dst);
  expect_same_bits(dst, at::zeros({1, 2}, at::kFloat), "padding needs no source");
}

// Token t sums t % 4 rows; some tokens have none.
struct Combine {
  explicit Combine(int64_t tokens, int32_t rows) {
    for (int64_t t = 0; t < tokens; ++t) offsets.push_back(offsets.back() + static_cast<int32_t>(t % 4));
    token_rows = random_indices(offsets.back(), 0, rows, 5);
  }
  std::vector<int32_t> offsets{0}, token_rows;
};

TEST(RowsTest, SumsEachTokensRowsInTheGivenOrder) {
  for (const auto dtype : kBothTypes) {
    for (const bool accumulate : {false, true}) {
      for (const int64_t tokens : {0, 1, 3, 40}) {
        const Combine combine(tokens, 9);
        const Tensor src = random_tensor({9, 65}, dtype, 1);
        Tensor y = random_tensor({tokens, 65}, dtype, 2);
        const Tensor expected = y.clone();
        for (int64_t t = 0; t < tokens; ++t) {
          Tensor sum = accumulate ? expected[t] : at::zeros({65}, dtype);
          for (int32_t j = combine.offsets[t]; j < combine.offsets[t + 1]; ++j) sum = sum + src[combine.token_rows[j]];
          expected[t].copy_(sum);
        }
        sum_rows(src, combine.offsets, combine.token_rows, accumulate, y);
        expect_same_bits(y, expected, "sums");
      }
    }
  }
}

TEST(RowsTest, SumOfPlacedRowsHasTheBitsOfOneTensor) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t tokens : {0, 1, 3, 40}) {
      const Combine combine(tokens, 9);
      const Tensor src = random_tensor({9, 65}, dtype, 1);
      const std::vector<Tensor> sources{src.narrow(0, 0, 2), src.narrow(0, 2, 0), src.narrow(0, 2, 7)};
      std::vector<RowPlace> places;
      for (const int32_t row : combine.token_rows) places.push_back(row < 2 ? RowPlace{0, row} : RowPlace{2, row - 2});
      Tensor y = random_tensor({tokens, 65}, dtype, 2), expected = random_tensor({tokens, 65}, dtype, 3);
      sum_rows(src, combine.offsets, combine.token_rows, false, expected);
      sum_placed_rows(sources, combine.offsets, places, y);
      expect_same_bits(y, expected, "sums");
    }
  }
}

TEST(RowsTest, SumOfPlacedRowsRefusesBrokenLists) {
  const std::vector<Tensor> sources{random_tensor({3, 2}, at::kFloat, 1), random_tensor({1, 2}, at::kFloat, 1)};
  Tensor y = at::empty({2, 2}, at::kFloat);
  const auto sum = [&](std::vector<int32_t> offsets, std::vector<RowPlace> places) {
    sum_placed_rows(sources, offsets, places, y);
  };
  sum({0, 1, 2}, {{0, 2}, {1, 0}});
  EXPECT_THROW(sum({0, 1}, {{0, 0}}), BugError);
  EXPECT_THROW(sum({0, 2, 1}, {{0, 0}}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {{0, 0}}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {{0, 0}, {1, 1}}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {{0, 0}, {2, 0}}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {{0, -1}, {1, 0}}), BugError);
}

TEST(RowsTest, SumRefusesBrokenLists) {
  const Tensor src = random_tensor({3, 2}, at::kFloat, 1);
  Tensor y = at::empty({2, 2}, at::kFloat);
  const auto sum = [&](std::vector<int32_t> offsets, std::vector<int32_t> rows) {
    sum_rows(src, offsets, rows, false, y);
  };
  sum({0, 1, 2}, {0, 2});
  EXPECT_THROW(sum({0, 1}, {0}), BugError);
  EXPECT_THROW(sum({0, 2, 1}, {0}), BugError);
  EXPECT_THROW(sum({1, 1, 2}, {0, 1}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {0}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {0, 3}), BugError);
  EXPECT_THROW(sum({0, 1, 2}, {0, -1}), BugError);
}

TEST(RowsTest, BiasesAndColumnSumsEqualTheReference) {
  for (const auto dtype : kBothTypes) {
    for (const int64_t rows : {0, 1, 64, 65, 200}) {
      for (const int64_t columns : {1, 3, 64, 130, 1025}) {
        const Tensor a = random_tensor({rows, columns}, dtype, 1), b = random_tensor({rows, columns}, dtype, 2);
        const Tensor bias = random_tensor({columns}, dtype, 3);
        Tensor y = a.clone(), dbias = bias.clone(), sum = a.clone();
        add_bias(y, bias);
        sum_columns(a, dbias);
        add(sum, b);
        expect_same_bits(y, a + bias, "bias");
        expect_same_bits(sum, a + b, "add");
        expect_close(dbias, bias.to(at::kDouble) + a.to(at::kDouble).sum(0), "column sums");
      }
    }
  }
}

TEST(RowsTest, ThreadsDoNotShow) {
  const Combine combine(1001, 64);
  const Tensor src = random_tensor({64, 257}, at::kFloat, 1), a = random_tensor({901, 257}, at::kFloat, 2);
  expect_threads_do_not_show([&] {
    Tensor y = at::empty({1001, 257}, at::kFloat), gathered = at::empty_like(a);
    Tensor dbias = at::zeros({257}, at::kFloat), sum = a.clone();
    sum_rows(src, combine.offsets, combine.token_rows, false, y);
    sum_columns(a, dbias);
    add(sum, a);
    gather_rows(src, random_indices(901, -2, 64, 7), gathered);
    return std::vector<Tensor>{y, dbias, sum, gathered};
  });
}

}  // namespace
}  // namespace conclave::kernels
