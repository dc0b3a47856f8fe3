// SPDX-License-Identifier: Apache-2.0
#include "text/ngram.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace conclave::text {
namespace {

void require_in_vocabulary(std::span<const int32_t> sequence, size_t vocab_size) {
  for (size_t i = 0; i < sequence.size(); ++i) {
    if (sequence[i] < 0 || static_cast<size_t>(sequence[i]) >= vocab_size) {
      throw DataError("token {} at position {} of a sequence is outside the vocabulary of {}", sequence[i], i,
                      vocab_size);
    }
  }
}

}  // namespace

NgramScore& NgramScore::operator+=(const NgramScore& other) {
  nats += other.nats;
  tokens += other.tokens;
  return *this;
}

UnigramModel::UnigramModel(int32_t vocab_size) : counts_(vocab_size) {}

void UnigramModel::add(std::span<const int32_t> sequence) {
  require_in_vocabulary(sequence, counts_.size());
  for (size_t i = 1; i < sequence.size(); ++i) ++counts_[sequence[i]];
  if (!sequence.empty()) total_ += static_cast<int64_t>(sequence.size()) - 1;
}

double UnigramModel::probability(int32_t token) const {
  return static_cast<double>(counts_[token] + 1) / static_cast<double>(total_ + static_cast<int64_t>(counts_.size()));
}

NgramScore UnigramModel::score(std::span<const int32_t> sequence) const {
  require_in_vocabulary(sequence, counts_.size());
  NgramScore score;
  for (size_t i = 1; i < sequence.size(); ++i) score += {-std::log(probability(sequence[i])), 1};
  return score;
}

BigramModel::BigramModel(int32_t vocab_size) : followed_(vocab_size), followers_(vocab_size), preceders_(vocab_size) {}

void BigramModel::add(std::span<const int32_t> sequence) {
  require_in_vocabulary(sequence, followed_.size());
  for (size_t i = 1; i < sequence.size(); ++i) {
    const int32_t previous = sequence[i - 1];
    const int32_t token = sequence[i];
    ++followed_[previous];
    if (++pairs_[pair_key(previous, token)] > 1) continue;
    ++kinds_;
    ++followers_[previous];
    if (++preceders_[token] == 1) ++continuing_;
  }
}

double BigramModel::continuation(int32_t token) const {
  const double uniform = 1.0 / static_cast<double>(followed_.size());
  if (kinds_ == 0) return uniform;
  const auto kinds = static_cast<double>(kinds_);
  const double seen = std::max(static_cast<double>(preceders_[token]) - kDiscount, 0.0) / kinds;
  return seen + kDiscount * static_cast<double>(continuing_) / kinds * uniform;
}

double BigramModel::probability(int32_t previous, int32_t token) const {
  const double lower = continuation(token);
  if (followed_[previous] == 0) return lower;
  const auto followed = static_cast<double>(followed_[previous]);
  const int64_t* found = pairs_.find(pair_key(previous, token));
  const double seen = found ? (static_cast<double>(*found) - kDiscount) / followed : 0.0;
  return seen + kDiscount * static_cast<double>(followers_[previous]) / followed * lower;
}

NgramScore BigramModel::score(std::span<const int32_t> sequence) const {
  require_in_vocabulary(sequence, followed_.size());
  NgramScore score;
  for (size_t i = 1; i < sequence.size(); ++i) score += {-std::log(probability(sequence[i - 1], sequence[i])), 1};
  return score;
}

}  // namespace conclave::text
