// SPDX-License-Identifier: Apache-2.0
#include "model/gradient_norm.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "kernels/optimizer.h"
#include "model/buckets.h"
#include "support/ranks.h"

namespace conclave::model {
namespace {

constexpr int64_t kSlice = kernels::kNormSlice;

// Tensors of several slices and of less than one, a fused pair whose second begins off a 64-byte boundary, and experts.
nn::Parameters parameters(uint64_t seed = 3) {
  nn::Parameters all;
  const auto add = [&](std::vector<nn::LogicalTensor> parts, bool expert) {
    int64_t count = 0;
    for (const auto& part : parts) count += nn::element_count(part.shape);
    all.add({.parts = std::move(parts), .shape = {count}, .expert = expert, .init_std = 0.5});
  };
  add({{"z.large", {5, kSlice / 2}}}, false);
  add({{"small", {33}}}, false);
  add({{"pair.first", {7}}, {"pair.second", {kSlice + 3}}}, false);
  add({{"a.large", {2 * kSlice}}}, false);
  add({{"experts.0", {kSlice + 16}}}, true);
  add({{"experts.1", {100}}}, true);
  all.allocate(at::kFloat, seed);
  return all;
}

Tensor own(const nn::Parameters& all, const parallel::Shards& shards, bool expert) {
  std::vector<Tensor> ranges;
  for (const auto& range : shards.own()) ranges.push_back(all.flat(expert).narrow(0, range.begin, range.count));
  return at::cat(ranges);
}

double norm_alone(uint64_t seed = 3) {
  const auto all = parameters(seed);
  return GradientNorm(all, {parallel::Shards(all.flat_size(false)), parallel::Shards(all.flat_size(true))},
                      parallel::Mesh())(all.flat(false), all.flat(true));
}

// Two buckets of the dense parameters, cut inside of a tensor.
Ownership shards_over(const comm::Group& group, const nn::Parameters& all) {
  const int64_t middle = all.all()[3].offset + kSlice;
  Buckets buckets;
  buckets.dense = {{0, middle, "first"}, {middle, all.flat_size(false), "second"}};
  buckets.expert = {{0, all.flat_size(true), "experts"}};
  return {shards_of(buckets, all, false, group), shards_of(buckets, all, true, group)};
}

TEST(GradientNormTest, IsTheRootOfAllSquares) {
  const auto all = parameters();
  const double squares = all.flat(false).to(at::kDouble).square().sum().item<double>() +
                         all.flat(true).to(at::kDouble).square().sum().item<double>();
  EXPECT_NEAR(norm_alone(), std::sqrt(squares), 1e-9 * std::sqrt(squares));
}

TEST(GradientNormTest, SlicesOfATensorOffAnAlignedPlaceAreNoPlaceToCut) {
  const auto all = parameters();
  for (const bool expert : {false, true})
    for (const int64_t start : norm_slice_starts(all, expert)) EXPECT_EQ(start % 16, 0);
  EXPECT_EQ(norm_slice_starts(all, false).size(), 3u + 1 + 1 + 2);
  EXPECT_EQ(norm_slice_starts(all, true).size(), 2u + 1);
}

TEST(GradientNormRanksTest, ShardsOfAnyNumberOfOwnersHaveTheSameBits) {
  // A sum in another order often has the same bits by chance, so some more.
  for (const uint64_t seed : {3, 4, 5, 6, 7, 8})
    for (const int ranks : {2, 3, 5, 12}) {
      const double expected = norm_alone(seed);
      test::run_ranks(ranks, [&, seed = seed](const comm::Group& group) {
        const auto all = parameters(seed);
        const Ownership owned = shards_over(group, all);
        const GradientNorm norm(all, owned, parallel::Mesh());
        EXPECT_EQ(norm(own(all, owned.dense, false), own(all, owned.expert, true)), expected) << ranks;
      });
    }
}

TEST(GradientNormRanksTest, WhatIsNotFiniteIsNamedByItsOwnerAlone) {
  test::run_ranks(3, [&](const comm::Group& group) {
    auto all = parameters();
    const Ownership owned = shards_over(group, all);
    const GradientNorm norm(all, owned, parallel::Mesh());
    const auto found = [&] {
      return norm.non_finite_owned(own(all, owned.dense, false), own(all, owned.expert, true));
    };
    EXPECT_EQ(found(), std::nullopt);
    for (const auto& [index, name] : {std::pair<size_t, std::string>{0, "z.large"}, {3, "a.large"}}) {
      const auto& parameter = all.all()[index];
      const int64_t at = parameter.offset + parameter.count - 1;
      const float value = all.flat(false)[at].item<float>();
      all.flat(false)[at] = std::nan("");
      const auto& ranges = owned.dense.own();
      const bool mine = std::any_of(ranges.begin(), ranges.end(),
                                    [&](const auto& range) { return range.begin <= at && at < range.end(); });
      EXPECT_EQ(found(), mine ? std::optional(name) : std::nullopt) << group.rank();
      EXPECT_EQ(norm.non_finite(false, all.flat(false), 0), name) << "a whole buffer has no owner";
      const Tensor rest = all.flat(false).narrow(0, at, all.flat(false).numel() - at);
      EXPECT_EQ(norm.non_finite(false, rest, at), name);
      EXPECT_EQ(norm.non_finite(false, rest.narrow(0, 1, rest.numel() - 1), at + 1), std::nullopt);
      EXPECT_TRUE(std::isnan(norm(own(all, owned.dense, false), own(all, owned.expert, true))));
      all.flat(false)[at] = value;
    }
  });
}

TEST(GradientNormTest, AnOwnerOfPartOfASliceIsABug) {
  test::run_ranks(2, [&](const comm::Group& group) {
    const auto all = parameters();
    const parallel::Shards inside(group, {{0, kSlice + 16, all.flat_size(false)}});
    EXPECT_THROW(GradientNorm(all, {inside, parallel::Shards(all.flat_size(true))}, parallel::Mesh()), BugError);
  });
}

}  // namespace
}  // namespace conclave::model
