// SPDX-License-Identifier: Apache-2.0
// How many experts compute for a token, by how often the token occurs. Of ReMoE is published that frequent tokens take
// fewer experts (arXiv 2412.14711, section on dynamic allocation); routers with a fixed k give a constant.
#pragma once

#include <span>
#include <vector>

#include "comm/group.h"
#include "core/batch.h"
#include "moe/decision.h"

namespace conclave::train {

class TokenActivity {
 public:
  explicit TokenActivity(int64_t vocab_size) : occurrences_V_(vocab_size, 0), experts_V_(vocab_size, 0) {}
  // A micro-batch whose tokens this rank routed whole, and what each MoE layer decided. Padding does not count.
  void add(const Batch& batch, std::span<const moe::Decision* const> layers);
  // Sums over ranks. Collective.
  void reduce(const comm::Group& dp);

  // Tokens of the vocabulary that occur at least `from` and fewer than `to` times.
  struct Band {
    int64_t from = 1, to = 4;
    int64_t words = 0;   // of the vocabulary
    int64_t tokens = 0;  // occurrences
    double experts = 0;  // of a token at a layer, mean over occurrences and layers
  };
  // Bounds are powers of four; rare ones first, empty ones left out.
  std::vector<Band> bands() const;
  // Spearman's, between occurrences and mean experts over the words that occur; 0 where either does not vary.
  double rank_correlation() const;

 private:
  double mean_experts(int64_t word) const;

  int64_t layers_ = 0;
  std::vector<int64_t> occurrences_V_, experts_V_;  // experts: summed over occurrences and layers
};

}  // namespace conclave::train
