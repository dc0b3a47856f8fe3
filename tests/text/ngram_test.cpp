// SPDX-License-Identifier: Apache-2.0
#include "text/ngram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/error.h"

namespace conclave::text {
namespace {

// Vocabulary of 4; sequences 0 1 0 1 2 and 2 0. Pairs: 01 twice, 10, 12, 20 once.
const std::vector<std::vector<int32_t>> kText = {{0, 1, 0, 1, 2}, {2, 0}};

template <typename Model>
Model fitted() {
  Model model(4);
  for (const auto& sequence : kText) model.add(sequence);
  return model;
}

TEST(NgramTest, UnigramCountsPredictedTokensAndAddsOne) {
  const auto model = fitted<UnigramModel>();  // predicted: 1 0 1 2 0
  EXPECT_DOUBLE_EQ(model.probability(0), 3.0 / 9);
  EXPECT_DOUBLE_EQ(model.probability(1), 3.0 / 9);
  EXPECT_DOUBLE_EQ(model.probability(2), 2.0 / 9);
  EXPECT_DOUBLE_EQ(model.probability(3), 1.0 / 9);
}

TEST(NgramTest, BigramGivesTheHandWorkedKneserNey) {
  const auto model = fitted<BigramModel>();
  // q: 4 kinds of pairs, 3 tokens follow another; preceders of 0: {1, 2}, of 1: {0}, of 2: {1}.
  const double rest = 0.75 * 3 / 4 / 4;  // = 0.140625
  const double q0 = 1.25 / 4 + rest, q1 = 0.25 / 4 + rest, q2 = 0.25 / 4 + rest, q3 = rest;
  EXPECT_DOUBLE_EQ(q0 + q1 + q2 + q3, 1.0);
  // After 0: 1 twice, one kind. After 1: 0 and 2 once each, two kinds.
  EXPECT_DOUBLE_EQ(model.probability(0, 1), 1.25 / 2 + 0.75 / 2 * q1);
  EXPECT_DOUBLE_EQ(model.probability(0, 0), 0.75 / 2 * q0);
  EXPECT_DOUBLE_EQ(model.probability(1, 0), 0.25 / 2 + 0.75 * q0);
  EXPECT_DOUBLE_EQ(model.probability(1, 3), 0.75 * q3);
  EXPECT_DOUBLE_EQ(model.probability(3, 2), q2);  // 3 was never followed by anything
}

TEST(NgramTest, ProbabilitiesSumToOneAfterEveryToken) {
  const auto unigram = fitted<UnigramModel>();
  const auto bigram = fitted<BigramModel>();
  const BigramModel empty(4);
  double alone = 0;
  for (int32_t token = 0; token < 4; ++token) alone += unigram.probability(token);
  EXPECT_NEAR(alone, 1, 1e-12);
  for (int32_t previous = 0; previous < 4; ++previous) {
    double sum = 0, uniform = 0;
    for (int32_t token = 0; token < 4; ++token) {
      sum += bigram.probability(previous, token);
      uniform += empty.probability(previous, token);
    }
    EXPECT_NEAR(sum, 1, 1e-12) << previous;
    EXPECT_NEAR(uniform, 1, 1e-12) << previous;
  }
}

TEST(NgramTest, ScoresFromTheSecondTokenOnInNats) {
  const auto unigram = fitted<UnigramModel>();
  const auto bigram = fitted<BigramModel>();
  const std::vector<int32_t> text = {3, 0, 1};
  EXPECT_DOUBLE_EQ(unigram.score(text).nats, -std::log(3.0 / 9) - std::log(3.0 / 9));
  NgramScore score = bigram.score(text);
  EXPECT_EQ(score.tokens, 2);
  EXPECT_DOUBLE_EQ(score.nats, -std::log(bigram.probability(3, 0)) - std::log(bigram.probability(0, 1)));
  score += bigram.score(std::vector<int32_t>{1});
  EXPECT_EQ(score.tokens, 2);
  EXPECT_DOUBLE_EQ(score.nats_per_token(), score.nats / 2);
  EXPECT_EQ(bigram.score({}).nats_per_token(), 0);
}

TEST(NgramTest, RefusesTokensOutsideTheVocabulary) {
  UnigramModel unigram(4);
  BigramModel bigram(4);
  const std::vector<int32_t> high = {0, 4}, low = {-1};
  EXPECT_THROW(unigram.add(high), DataError);
  EXPECT_THROW(unigram.score(low), DataError);
  EXPECT_THROW(bigram.add(low), DataError);
  EXPECT_THROW(bigram.score(high), DataError);
}

}  // namespace
}  // namespace conclave::text
