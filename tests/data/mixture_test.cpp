// SPDX-License-Identifier: Apache-2.0
#include "data/mixture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace conclave::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Mixture of(const std::vector<double>& weights) { return Mixture(weights); }

// formats.md: from Megatron's compiled helpers.
TEST(MixtureGolden, DrawsInTheOrderOfMegatron) {
  const auto mixture = of({0.3, 0.7});
  std::vector<size_t> sources;
  std::vector<int64_t> samples;
  for (int64_t n = 0; n < 10; ++n) {
    sources.push_back(mixture.at(n).source);
    samples.push_back(mixture.at(n).sample);
  }
  EXPECT_THAT(sources, ElementsAre(1, 0, 1, 1, 0, 1, 1, 0, 1, 1));
  EXPECT_THAT(samples, ElementsAre(0, 0, 1, 2, 1, 3, 4, 2, 5, 6));
}

// Later on, rounding to 2^-20 decides near ties differently.
TEST(MixtureGolden, RoundedWeightsBeginAsMegatronsGreedyRule) {
  const std::vector<double> weights = {0.1234567, 0.5123001, 0.0765433, 0.2876999};
  const Mixture mixture(weights);
  EXPECT_EQ(mixture.period(), 1 << 20);
  std::vector<double> taken(weights.size());
  for (int64_t n = 0; n < 500; ++n) {
    size_t best = 0;
    for (size_t i = 1; i < weights.size(); ++i) {
      const double t = std::max<double>(static_cast<double>(n), 1);
      if (weights[i] * t - taken[i] > weights[best] * t - taken[best]) best = i;
    }
    ASSERT_EQ(mixture.at(n).source, best) << n;
    ++taken[best];
  }
}

TEST(MixtureTest, CountsOnWithoutGapsAcrossPeriods) {
  rc::check([] {
    const auto weights = *rc::gen::nonEmpty(
        rc::gen::container<std::vector<double>>(rc::gen::map(rc::gen::inRange(0, 50), [](int w) { return w * 0.5; })));
    RC_PRE(std::accumulate(weights.begin(), weights.end(), 0.0) > 0);
    RC_PRE(weights.size() < 30u);
    const Mixture mixture(weights);
    std::vector<int64_t> next(weights.size());
    for (int64_t n = 0; n < 3000; ++n) {
      const auto draw = mixture.at(n);
      RC_ASSERT(weights[draw.source] > 0);
      RC_ASSERT(draw.sample == next[draw.source]++);
    }
    for (size_t i = 0; i < weights.size(); ++i) RC_ASSERT(mixture.taken(i, 3000) == next[i]);
  });
}

TEST(MixtureTest, LongRunSharesAreTheWeightsAndNeverFarOff) {
  const std::vector<double> weights = {5, 2.5, 1.25, 0.7, 0.55};
  const Mixture mixture(weights);
  std::vector<int64_t> taken(weights.size());
  for (int64_t n = 0; n < 100000; ++n) {
    ++taken[mixture.at(n).source];
    for (size_t i = 0; i < weights.size(); ++i)
      ASSERT_LT(std::abs(static_cast<double>(taken[i]) - weights[i] / 10 * static_cast<double>(n + 1)), 2.0);
  }
  for (size_t i = 0; i < weights.size(); ++i) EXPECT_DOUBLE_EQ(mixture.share(i), weights[i] / 10);
}

TEST(MixtureTest, AwkwardWeightsAreKeptToOneInAMillion) {
  const std::vector<double> weights = {1 / std::sqrt(2.0), 1e-12, 1 / std::sqrt(3.0), 0};
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  const Mixture mixture(weights);
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_NEAR(mixture.share(i), weights[i] / total, 2e-6);
    sum += mixture.share(i);
  }
  EXPECT_DOUBLE_EQ(sum, 1.0);
  EXPECT_GT(mixture.share(1), 0);  // a weight is never rounded away
  EXPECT_EQ(mixture.share(3), 0);
}

TEST(MixtureTest, AnySampleNumberIsReadAtOnce) {
  const auto mixture = of({0.3, 0.7});
  const int64_t far = int64_t{1} << 50;
  const auto draw = mixture.at(far);
  EXPECT_EQ(draw.sample, mixture.taken(draw.source, far));
  EXPECT_EQ(mixture.taken(0, far) + mixture.taken(1, far), far);
}

TEST(MixtureTest, SourcesOfEqualWeightTakeTurns) {
  const auto mixture = of({2, 2, 2});
  EXPECT_EQ(mixture.period(), 3);
  for (int64_t n = 0; n < 9; ++n) EXPECT_EQ(mixture.at(n), (Mixture::Draw{static_cast<size_t>(n % 3), n / 3}));
  EXPECT_EQ(of({17}).period(), 1);
}

TEST(MixtureTest, RefusesWeightsThatMeanNothing) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto& [weights, told] :
       std::vector<std::pair<std::vector<double>, std::string>>{{{0, 0}, "add up to 0"},
                                                                {{1, -1}, "data.train[1].weight is -1"},
                                                                {{std::nan(""), 1}, "data.train[0].weight is nan"},
                                                                {{1, infinity}, "data.train[1].weight is inf"},
                                                                {{1e308, 1e308}, "infinity"}}) {
    try {
      of(weights);
      ADD_FAILURE() << told;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr(told));
    }
  }
}

}  // namespace
}  // namespace conclave::data
