// SPDX-License-Identifier: Apache-2.0
// Two yardsticks for a trained model's loss: how well the frequency of single tokens, and of pairs, predicts text.
// Fitted by counting, scored in nats per token on other text. They hold all counts in memory and are no language models
// to sample from.
//
// In every sequence the tokens from the second on are predicted (the first is only context), as in training, so both
// scores and the loss of a model are over the same tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "text/flat_map.h"

namespace conclave::text {

struct NgramScore {
  double nats = 0;  // sum of -ln p
  int64_t tokens = 0;
  // 0 when nothing was scored.
  double nats_per_token() const { return tokens > 0 ? nats / static_cast<double>(tokens) : 0; }
  NgramScore& operator+=(const NgramScore& other);
};

// p(w) = (c(w) + 1) / (N + V): relative frequency, each of the V tokens counted once more so that none is impossible.
class UnigramModel {
 public:
  explicit UnigramModel(int32_t vocab_size);
  // Throws DataError for an id outside the vocabulary, as score does.
  void add(std::span<const int32_t> sequence);
  double probability(int32_t token) const;
  NgramScore score(std::span<const int32_t> sequence) const;

 private:
  std::vector<int64_t> counts_;
  int64_t total_ = 0;
};

// Interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999, eq. 24-26), one discount D = 0.75 at both
// levels:
//   p(w | v) = max(c(v w) - D, 0) / c(v .) + D * N(v .) / c(v .) * q(w)
//   q(w)     = max(N(. w) - D, 0) / N(. .) + D * W / N(. .) / V
// c counts pairs, N different pairs, W tokens that follow any other, V is the vocabulary. After a v never followed by
// anything p(w | v) = q(w); before any text q(w) = 1 / V.
class BigramModel {
 public:
  static constexpr double kDiscount = 0.75;

  explicit BigramModel(int32_t vocab_size);
  void add(std::span<const int32_t> sequence);
  double probability(int32_t previous, int32_t token) const;
  NgramScore score(std::span<const int32_t> sequence) const;

 private:
  double continuation(int32_t token) const;

  FlatMap<int64_t> pairs_;          // c(v w)
  std::vector<int64_t> followed_;   // c(v .)
  std::vector<int64_t> followers_;  // N(v .)
  std::vector<int64_t> preceders_;  // N(. w)
  int64_t kinds_ = 0;               // N(. .)
  int64_t continuing_ = 0;          // W
};

}  // namespace conclave::text
