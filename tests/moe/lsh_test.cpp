// SPDX-License-Identifier: Apache-2.0
// LSH-MoE (moe/compressors/lsh.cpp, methods.md 3.1): what is exact, what the error is otherwise, gradients by finite
// differences and by the formula, the hash, and that every dispatcher carries buckets.
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "moe/compressors/cross_polytope.h"
#include "support/moe_layer.h"
#include "support/ranks.h"
#include "support/tiny_models.h"

namespace conclave {
namespace {

using moe::CompressionConfig;
using testing::LayerResult;
using testing::MoeLayer;

constexpr testing::LayerSize kSize{4, 2, 6, 5};
const CompressionConfig kCoarse{.hashes = 1, .dimensions = 1}, kFine{.hashes = 16};

moe::MoeConfig layer_config(const std::optional<CompressionConfig>& compression) {
  moe::MoeConfig config;
  config.dispatch.compression = compression;
  return config;
}

struct Input {
  Batch batch;
  Tensor x, dy;
};

Input random_input(int64_t T, int64_t width = kSize.width) {
  return {testing::random_batch(1, T, 23, 1), kernels::random_tensor({T, width}, at::kDouble, 2),
          kernels::random_tensor({T, width}, at::kDouble, 3)};
}

void expect_near(const Tensor& actual, const Tensor& expected, const char* what, double tolerance = 1e-12) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  EXPECT_LE((actual - expected).abs().max().item<double>(), tolerance * (1 + expected.abs().max().item<double>()))
      << what;
}

void expect_same_layer(const LayerResult& got, const LayerResult& expected) {
  expect_near(got.y, expected.y, "y");
  expect_near(got.dx, expected.dx, "dx");
  expect_near(got.drouter, expected.drouter, "router");
  expect_near(got.dexperts[0].gate_up_E2FD, expected.dexperts[0].gate_up_E2FD, "gate and up");
  expect_near(got.dexperts[0].down_EDF, expected.dexperts[0].down_EDF, "down");
}

TEST(LshCompression, BucketsOfOneRowAreExact) {
  const Input in = random_input(17);
  const MoeLayer plain(layer_config({}), kSize, at::kDouble), fine(layer_config(kFine), kSize, at::kDouble);
  const auto got = fine.run(in.batch, in.x, in.dy);
  ASSERT_EQ(got.buckets.count(), 2 * 17);
  expect_same_layer(got, plain.run(in.batch, in.x, in.dy));
}

TEST(LshCompression, IdenticalTokensAreExact) {
  const Input few = random_input(3);
  const auto repeated = [](const Tensor& rows) { return at::cat({rows, rows, rows, rows}); };
  const Batch batch = testing::random_batch(1, 12, 23, 1);
  const Tensor x = repeated(few.x);
  const MoeLayer plain(layer_config({}), kSize, at::kDouble), fine(layer_config(kFine), kSize, at::kDouble);
  const auto got = fine.run(batch, x, repeated(few.dy));
  ASSERT_EQ(got.buckets.count(), 2 * 3);
  expect_same_layer(got, plain.run(batch, x, repeated(few.dy)));
  // A bucket hands on the mean of its tokens' gradients: with others for each token their sum stays.
  const Tensor dy = kernels::random_tensor({12, kSize.width}, at::kDouble, 4);
  const auto sums = [&](const MoeLayer& layer) { return layer.run(batch, x, dy).dx.view({4, 3, kSize.width}).sum(0); };
  expect_near(sums(fine), sums(plain), "sums of dx");
}

// Experts that are linear on rows whose last number is 1: silu of a constant, times x, times A over that constant.
// Width and expert width are 6.
struct LinearExperts {
  static constexpr testing::LayerSize kSquare{4, 2, 6, 6};
  Tensor a_DD;

  void set(const MoeLayer& layer) const {
    constexpr double kGate = 2.0;
    const double silu = kGate / (1 + std::exp(-kGate));
    for (int64_t e = 0; e < 4; ++e) {
      Tensor gate_up = layer.gate_up(e);
      gate_up.zero_();
      gate_up.narrow(0, 0, 6).select(1, 5).fill_(kGate);
      gate_up.narrow(0, 6, 6).copy_(at::eye(6, at::kDouble));
      layer.down(e).copy_(a_DD / silu);
    }
  }
  static Input input() {
    Input in = random_input(19);
    in.x.select(1, 5).fill_(1.0);
    return in;
  }
};

TEST(LshCompression, ExpertsThatAreTheIdentityAreExactForAnyBuckets) {
  const LinearExperts identity{at::eye(6, at::kDouble)};
  const Input in = LinearExperts::input();
  for (const int64_t dimensions : {1, 2, 8}) {
    const MoeLayer plain(layer_config({}), LinearExperts::kSquare, at::kDouble),
        coarse(layer_config(CompressionConfig{.hashes = 1, .dimensions = dimensions}), LinearExperts::kSquare,
               at::kDouble);
    identity.set(plain), identity.set(coarse);
    const auto got = coarse.run(in.batch, in.x, in.dy);
    ASSERT_LT(got.buckets.count(), 2 * 19);
    expect_near(got.y, plain.run(in.batch, in.x, in.dy).y, "y");
  }
}

// Mean row of each pair's bucket.
Tensor mean_of_pairs(const Tensor& x, const moe::RowBuckets& buckets) {
  Tensor means = at::zeros({std::ssize(buckets.pairs_N), x.size(1)}, at::kDouble);
  for (int64_t b = 0; b < buckets.count(); ++b) {
    Tensor sum = at::zeros({x.size(1)}, at::kDouble);
    for (const int32_t n : buckets.of(b)) sum.add_(x[buckets.token_of_N[n]]);
    for (const int32_t n : buckets.of(b)) means[n].copy_(sum / static_cast<double>(buckets.size(b)));
  }
  return means;
}

double weight_of(const LayerResult& result, int64_t pair) {
  return result.decision.choice.weights_C[result.decision.routing.picks_N[pair]].item<double>();
}

// dL/dx_t = Σ_n w_n (dy_t + 1/n_b Σ_{t' in b} (Aᵀ − 1) dy_t'), gates inside; without what x means to the router.
Tensor gradient_by_formula(const LayerResult& result, const Tensor& dy, const Tensor& a_DD) {
  const Tensor jacobian = a_DD.t() - at::eye(a_DD.size(0), at::kDouble);
  Tensor dx = at::zeros_like(dy);
  for (int64_t n = 0; n < result.decision.routing.pairs(); ++n) {
    const int32_t t = result.buckets.token_of_N[n], b = result.buckets.bucket_of_N[n];
    Tensor sum = at::zeros_like(dy[t]);
    for (const int32_t other : result.buckets.of(b))
      sum.add_(dy[result.buckets.token_of_N[other]] * weight_of(result, other));
    dx[t].add_(dy[t] * weight_of(result, n) + at::matmul(jacobian, sum) / static_cast<double>(result.buckets.size(b)));
  }
  return dx;
}

TEST(LshCompression, LinearExpertsErrByWhatTheyDoToResiduals) {
  const LinearExperts linear{kernels::random_tensor({6, 6}, at::kDouble, 8)};
  const Input in = LinearExperts::input();
  const MoeLayer plain(layer_config({}), LinearExperts::kSquare, at::kDouble),
      coarse(layer_config(kCoarse), LinearExperts::kSquare, at::kDouble);
  linear.set(plain), linear.set(coarse);
  const auto got = coarse.run(in.batch, in.x, in.dy);
  const Tensor means = mean_of_pairs(in.x, got.buckets), change = at::eye(6, at::kDouble) - linear.a_DD;
  Tensor error = at::zeros_like(in.x);
  for (int64_t n = 0; n < got.decision.routing.pairs(); ++n) {
    const int32_t t = got.buckets.token_of_N[n];
    error[t].add_(at::matmul(change, in.x[t] - means[n]) * weight_of(got, n));
  }
  EXPECT_GT(error.abs().max().item<double>(), 0.1);
  expect_near(got.y - plain.run(in.batch, in.x, in.dy).y, error, "error");
}

TEST(LshCompression, GradientIsThatOfTheFormula) {
  const LinearExperts linear{kernels::random_tensor({6, 6}, at::kDouble, 8)};
  const Input in = LinearExperts::input();
  const MoeLayer coarse(layer_config(kCoarse), LinearExperts::kSquare, at::kDouble);
  linear.set(coarse);
  coarse.router().zero_();  // has no part in dx then
  const auto got = coarse.run(in.batch, in.x, in.dy);
  ASSERT_LT(got.buckets.count(), 19);
  // The last number is the experts' constant: of its gradient A says nothing.
  expect_near(got.dx.narrow(1, 0, 5), gradient_by_formula(got, in.dy, linear.a_DD).narrow(1, 0, 5), "dx");
}

TEST(LshCompression, GradientsAreFiniteDifferencesWithTheBucketsHeld) {
  Input in = random_input(13);
  in.batch.segment_ids[12] = -1, in.batch.loss_mask[12] = 0;
  const MoeLayer layer(layer_config(CompressionConfig{.hashes = 2, .dimensions = 2}), kSize, at::kDouble);
  const auto at_start = layer.run(in.batch, in.x, in.dy);
  ASSERT_LT(at_start.buckets.count(), 24);
  ASSERT_GT(at_start.buckets.count(), 4);
  const auto difference = [&](Tensor numbers, int64_t i) {
    constexpr double kStep = 1e-6;
    Tensor flat = numbers.view({-1});
    const double saved = flat[i].item<double>();
    const auto at = [&](double value) {
      flat[i] = value;
      const auto result = layer.run(in.batch, in.x, in.dy);
      EXPECT_EQ(result.buckets.bucket_of_N, at_start.buckets.bucket_of_N) << "the step is too large";
      return (result.y * in.dy).sum().item<double>();
    };
    const double up = at(saved + kStep), down = at(saved - kStep);
    flat[i] = saved;
    return (up - down) / (2 * kStep);
  };
  const auto compare = [&](const Tensor& numbers, const Tensor& gradient, int64_t stride, const char* what) {
    for (int64_t i = 0; i < numbers.numel(); i += stride) {
      const double expected = difference(numbers, i);
      EXPECT_NEAR(gradient.reshape({-1})[i].item<double>(), expected, 2e-7 * std::max(1.0, std::abs(expected)))
          << what << " " << i;
    }
  };
  compare(in.x, at_start.dx, 1, "x");
  compare(layer.router(), at_start.drouter, 5, "router");
  for (int64_t e = 0; e < kSize.experts; ++e) {
    compare(layer.gate_up(e), at_start.dexperts[0].gate_up_E2FD[e], 7, "gate and up");
    compare(layer.down(e), at_start.dexperts[0].down_EDF[e], 7, "down");
  }
}

TEST(LshCompression, AnEvaluationSendsEachRow) {
  const Input in = random_input(17);
  const MoeLayer plain(layer_config({}), kSize, at::kDouble), coarse(layer_config(kCoarse), kSize, at::kDouble);
  const auto got = coarse.run(in.batch, in.x, {});
  EXPECT_EQ(got.buckets.count(), 2 * 17);
  expect_near(got.y, plain.run(in.batch, in.x, {}).y, "y");
  EXPECT_LT(coarse.run(in.batch, in.x, in.dy).buckets.count(), 17);
}

TEST(LshCompression, MeansOfFloatsAreExactForEqualRows) {
  const Tensor row = kernels::random_tensor({1, 7}, at::kFloat, 5), x = row.expand({11, 7}).contiguous();
  const auto routing =
      moe::make_routing(moe::even_picks(std::vector<int32_t>(11, 0), 11), std::vector<uint8_t>(11, 1), {0, 11}, 1);
  const auto buckets = moe::make_buckets(routing, std::vector<int32_t>(11, 4));
  ASSERT_EQ(buckets.count(), 1);
  kernels::expect_same_bits(moe::bucket_means(x, buckets), row, "mean");
}

// Three experts; tokens of classes 0 1 0 2 0, of which the fourth is padding.
TEST(LshBuckets, HoldPairsOfOneExpertAndOneClassAndAreNumberedByTheirFirstToken) {
  const std::vector<int32_t> picks{2, 0, 0, 2, 2, 1, 0, 1, 0, 2}, classes{0, 1, 0, 2, 0};
  const std::vector<uint8_t> keep{1, 1, 1, 1, 1, 1, 0, 0, 1, 1};
  const auto routing = moe::make_routing(moe::even_picks(picks, 5), keep, {0, 5}, 3);
  // Pairs by expert and token: (0: t0 t1 t4) (1: t2) (2: t0 t1 t2 t4).
  const auto buckets = moe::make_buckets(routing, classes);
  EXPECT_EQ(buckets.bucket_of_N, (std::vector<int32_t>{1, 2, 1, 4, 0, 3, 0, 0}));
  EXPECT_EQ(buckets.offsets_B1, (std::vector<int32_t>{0, 3, 5, 6, 7, 8}));
  EXPECT_EQ(buckets.pairs_N, (std::vector<int32_t>{4, 6, 7, 0, 2, 1, 5, 3}));
  const auto inner = moe::bucket_routing(buckets, routing);
  EXPECT_EQ(inner.tokens, 5);
  EXPECT_EQ(inner.offsets_E1, (std::vector<int32_t>{0, 2, 3, 5}));
  EXPECT_EQ(inner.rows_N, (std::vector<int32_t>{1, 2, 4, 0, 3}));
  EXPECT_EQ(moe::make_buckets(routing, {}).count(), 8);
}

TEST(LshBuckets, ThreadsDoNotShow) {
  const int64_t T = 700, D = 40;
  const auto ids = kernels::random_indices(2 * T, 0, 4, 1), classes = kernels::random_indices(T, 0, 50, 2);
  const auto routing = moe::make_routing(moe::even_picks(ids, T), std::vector<uint8_t>(2 * T, 1), {0, T}, 4);
  const auto buckets = moe::make_buckets(routing, classes);
  const auto rows = [&](int64_t count, uint64_t seed) { return kernels::random_tensor({count, D}, at::kFloat, seed); };
  const Tensor x = rows(T, 3), dy = rows(T, 4), weights = kernels::random_tensor({2 * T}, at::kFloat, 5);
  const moe::Expansion in{x, weights, moe::bucket_means(x, buckets), rows(buckets.count(), 6)};
  kernels::expect_threads_do_not_show([&] {
    const auto g = moe::expand_backward(in, dy, buckets, routing);
    return std::vector<Tensor>{moe::bucket_means(x, buckets),
                               moe::bucket_means_backward(in.means_BD, buckets, routing),
                               moe::expand(in, buckets, routing),
                               g.x_TD,
                               g.weights_N,
                               g.means_BD,
                               g.results_BD};
  });
}

Random stream(uint64_t seed, int hash, int layer) {
  return {seed, Purpose::kRowHash, static_cast<uint64_t>(hash), static_cast<uint32_t>(layer)};
}

std::vector<double> random_row(int64_t size, uint64_t seed) {
  std::vector<double> row(size);
  const Random random(seed, Purpose::kTest);
  for (int64_t i = 0; i < size; ++i) row[i] = random.normal(i);
  return row;
}

TEST(LshCrossPolytope, RotatesByAnOrthogonalMatrix) {
  constexpr int64_t P = 16;
  const moe::CrossPolytope hash(stream(1, 0, 0), 11, {});
  ASSERT_EQ(hash.size(), P);
  std::vector<std::vector<double>> images;
  for (int64_t i = 0; i < P; ++i) {
    std::vector<double> unit(P, 0.0);
    unit[i] = 1;
    hash.rotate(unit);
    images.push_back(unit);
  }
  for (int64_t i = 0; i < P; ++i)
    for (int64_t j = 0; j < P; ++j)
      EXPECT_EQ(std::inner_product(images[i].begin(), images[i].end(), images[j].begin(), 0.0),
                i == j ? std::pow(P, 3) : 0.0);
}

TEST(LshCrossPolytope, IsTheNearestOfTheAxesAndTheirOpposites) {
  for (const int64_t dimensions : {5, 16}) {
    const moe::CrossPolytope hash(stream(1, 0, 0), 16, dimensions);
    std::set<int32_t> seen;
    for (uint64_t seed = 0; seed < 300; ++seed) {
      const auto row = random_row(16, seed);
      auto rotated = row;
      hash.rotate(rotated);
      int32_t expected = -1;
      double best = -1;
      for (int64_t i = 0; i < dimensions; ++i)
        for (const int sign : {1, -1})
          if (sign * rotated[i] > best) best = sign * rotated[i], expected = static_cast<int32_t>(2 * i + (sign < 0));
      auto same = row, longer = row, opposite = row;
      for (double& v : longer) v *= 7.5;
      for (double& v : opposite) v = -v;
      EXPECT_EQ(hash.nearest(same), expected);
      EXPECT_EQ(hash.nearest(longer), expected);
      EXPECT_EQ(hash.nearest(opposite), expected ^ 1);
      seen.insert(expected);
    }
    EXPECT_EQ(std::ssize(seen), 2 * dimensions) << "every axis is some row's nearest";
  }
}

TEST(LshCrossPolytope, RowsCloseInAngleShareAHashMoreOftenThanOthers) {
  int64_t near = 0, far = 0;
  for (int h = 0; h < 400; ++h) {
    const moe::CrossPolytope hash(stream(1, h, 0), 32, {});
    auto row = random_row(32, 2 * h), other = random_row(32, 2 * h + 1), beside = row;
    for (size_t i = 0; i < row.size(); ++i) beside[i] += 0.2 * other[i];
    const int32_t mine = hash.nearest(row);
    near += hash.nearest(beside) == mine;
    far += hash.nearest(other) == mine;
  }
  EXPECT_GT(near, 200);
  EXPECT_LT(far, 40);  // 400 / 64 by chance
}

TEST(LshClasses, AreWhatAllHashesHaveInCommonAndDependOnSeedAndLayer) {
  const int64_t T = 400, D = 6;
  const Tensor x = kernels::random_tensor({T, D}, at::kFloat, 1);
  const CompressionConfig config{.hashes = 3, .dimensions = 2};
  const auto classes = [&](uint64_t seed, int layer) {
    return moe::Compressor::make(config, {.seed = seed, .layer = layer, .width = D})->classes(x);
  };
  const auto got = classes(7, 2);
  std::vector<std::vector<int32_t>> hashed(T);
  for (int h = 0; h < 3; ++h) {
    const moe::CrossPolytope hash(stream(7, h, 2), D, 2);
    for (int64_t t = 0; t < T; ++t) {
      std::vector<double> row(8, 0.0);
      for (int64_t d = 0; d < D; ++d) row[d] = x[t][d].item<double>();
      hashed[t].push_back(hash.nearest(row));
    }
  }
  for (int64_t t = 0; t < T; ++t)
    for (int64_t s = 0; s < t; ++s) ASSERT_EQ(got[t] == got[s], hashed[t] == hashed[s]) << t << " " << s;
  EXPECT_EQ(std::set<int32_t>(got.begin(), got.end()).size(),
            std::set<std::vector<int32_t>>(hashed.begin(), hashed.end()).size());
  EXPECT_NE(classes(8, 2), got);
  EXPECT_NE(classes(7, 3), got);
  EXPECT_EQ(classes(7, 2), got);
}

// One row for each bucket: no dispatcher has anything to add up.
TEST(LshCompressionRanks, EveryDispatcherCarriesBuckets) {
  const auto input = [](int rank) {
    Input in = random_input(11 + 6 * rank);
    in.x = in.x + rank;
    return in;
  };
  for (const auto dispatch : {moe::DispatchType::kAllToAll, moe::DispatchType::kHierarchical,
                              moe::DispatchType::kAllGather, moe::DispatchType::kShared}) {
    const bool one_host = dispatch == moe::DispatchType::kShared;
    test::run_ranks_on(one_host ? std::vector{0, 0, 0, 0} : std::vector{0, 0, 1, 1}, [&](const comm::Group& ep) {
      auto config = layer_config(kCoarse);
      const MoeLayer alone(config, kSize, at::kDouble);
      config.dispatch.type = dispatch;
      const MoeLayer spread(config, kSize, at::kDouble, ep);
      const Input own = input(ep.rank());
      const auto expected = alone.run(own.batch, own.x, own.dy), got = spread.run(own.batch, own.x, own.dy);
      expect_near(got.y, expected.y, "y");
      expect_near(got.dx, expected.dx, "dx");
      expect_near(got.drouter, expected.drouter, "router");
      EXPECT_LT(got.buckets.count(), 9);
    });
  }
}

}  // namespace
}  // namespace conclave
