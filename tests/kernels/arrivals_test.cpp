// SPDX-License-Identifier: Apache-2.0
#include "kernels/arrivals.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace conclave::kernels {
namespace {

using Counts = std::vector<std::vector<int32_t>>;  // [source][expert]

struct Order {
  std::vector<int32_t> ends, arrived, sorted;
};

// What a loop over the rows says.
Order by_hand(const Counts& counts) {
  const size_t S = counts.size(), E = counts[0].size();
  Order order;
  std::vector<std::vector<int32_t>> first(S, std::vector<int32_t>(E));
  int32_t rows = 0;
  for (size_t s = 0; s < S; ++s)
    for (size_t e = 0; e < E; ++e) {
      first[s][e] = rows;
      rows += counts[s][e];
    }
  order.sorted.resize(rows);
  for (size_t e = 0; e < E; ++e) {
    for (size_t s = 0; s < S; ++s)
      for (int32_t i = 0; i < counts[s][e]; ++i) {
        order.sorted[first[s][e] + i] = static_cast<int32_t>(order.arrived.size());
        order.arrived.push_back(first[s][e] + i);
      }
    order.ends.push_back(static_cast<int32_t>(order.arrived.size()));
  }
  return order;
}

std::vector<int32_t> numbers(const Tensor& tensor) {
  const auto all = elements<int32_t>(tensor);
  return {all.begin(), all.end()};
}

void expect_order(const Counts& counts) {
  const auto S = std::ssize(counts), E = std::ssize(counts[0]);
  Tensor tensor = at::empty({S, E}, at::kInt);
  int32_t* next = tensor.data_ptr<int32_t>();
  for (const auto& of_source : counts) next = std::copy(of_source.begin(), of_source.end(), next);
  const Order expected = by_hand(counts);
  const ArrivalOrder order = arrival_order(tensor, std::ssize(expected.arrived));
  EXPECT_EQ(numbers(order.ends_E), expected.ends);
  EXPECT_EQ(numbers(order.arrived_R), expected.arrived);
  EXPECT_EQ(numbers(order.sorted_R), expected.sorted);
  EXPECT_EQ(order.arrived_R.scalar_type(), at::kInt);
}

TEST(Arrivals, AreSortedByExpertThenBySource) {
  expect_order({{2, 1}, {1, 3}});
  expect_order({{3, 0, 2}, {0, 0, 1}, {1, 4, 0}, {2, 2, 2}});
  expect_order({{5, 1, 7}});
  expect_order({{4}, {0}, {3}});
}

TEST(Arrivals, MayBeMissingFromAnyRankAndForAnyExpert) {
  expect_order({{0, 0}, {0, 0}});
  expect_order({{0, 0}, {0, 1}});
  expect_order({{0, 3}, {0, 0}, {0, 2}});
  expect_order({{0, 0, 0, 9}, {7, 0, 0, 0}});
  expect_order({{0}, {0}, {1}});
}

TEST(Arrivals, AreSortedForAnyCounts) {
  uint32_t state = 7;
  for (int round = 0; round < 200; ++round) {
    Counts counts(1 + round % 5, std::vector<int32_t>(1 + round % 7));
    for (auto& of_source : counts)
      for (int32_t& count : of_source) {
        state = state * 1664525 + 1013904223;
        count = std::max(0, static_cast<int32_t>(state >> 28) - 6);
      }
    expect_order(counts);
  }
}

}  // namespace
}  // namespace conclave::kernels
