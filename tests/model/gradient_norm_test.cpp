// SPDX-License-Identifier: Apache-2.0
#include "model/gradient_norm.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/optimizer.h"
#include "support/ranks.h"

namespace conclave::model {
namespace {

constexpr int64_t kSlice = kernels::kNormSlice;

// Tensors of several slices and of less than one, a fused pair whose second begins off a 64-byte boundary, and experts.
nn::Parameters parameters() {
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
  all.allocate(at::kFloat, 3);
  return all;
}

Tensor own(const nn::Parameters& all, const parallel::Shards& shards, bool expert) {
  return all.flat(expert).narrow(0, shards.begin(), shards.count());
}

double norm_alone() {
  const auto all = parameters();
  return GradientNorm(all, {parallel::Shards(all.flat_size(false)), parallel::Shards(all.flat_size(true))},
                      parallel::Mesh())(all.flat(false), all.flat(true));
}

Ownership shards_over(const comm::Group& group, const nn::Parameters& all) {
  const auto shards = [&](bool expert) {
    const auto cuts = parallel::cuts_at(norm_slice_starts(all, expert), all.flat_size(expert), group.size());
    return parallel::Shards(group, cuts);
  };
  return {shards(false), shards(true)};
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
  const double expected = norm_alone();
  for (const int ranks : {2, 3, 5, 12}) {
    test::run_ranks(ranks, [&](const comm::Group& group) {
      const auto all = parameters();
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
      const bool mine = owned.dense.begin() <= at && at < owned.dense.end();
      EXPECT_EQ(found(), mine ? std::optional(name) : std::nullopt) << group.rank();
      EXPECT_EQ(norm.non_finite_dense(all.flat(false)), name) << "a whole buffer has no owner";
      EXPECT_TRUE(std::isnan(norm(own(all, owned.dense, false), own(all, owned.expert, true))));
      all.flat(false)[at] = value;
    }
  });
}

TEST(GradientNormTest, AnOwnerOfPartOfASliceIsABug) {
  test::run_ranks(2, [&](const comm::Group& group) {
    const auto all = parameters();
    const parallel::Shards inside(group, {0, kSlice + 16, all.flat_size(false)});
    EXPECT_THROW(GradientNorm(all, {inside, parallel::Shards(all.flat_size(true))}, parallel::Mesh()), BugError);
  });
}

}  // namespace
}  // namespace conclave::model
