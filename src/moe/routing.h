// SPDX-License-Identifier: Apache-2.0
// What a router decided for one micro-batch, as a compressed list sorted by (expert, token). General enough for any
// number of experts per token, for drops and for experts that nobody chose. T tokens, K choices, E experts, N kept
// (token, expert) pairs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace conclave::moe {

// What a router chose for each token, before any drop.
struct Choice {
  Tensor logits_TE;
  Tensor probs_TE;              // softmax over all experts, or sigmoid scores
  Tensor lse_T;                 // logsumexp of the logits (z-loss)
  std::vector<int32_t> ids_TK;  // best first
  Tensor raw_TK;                // scores of the chosen, before normalisation and scaling
  Tensor weights_TK;
  int64_t top_k = 0;
};

struct Routing {
  int64_t tokens = 0;
  std::vector<int32_t> rows_N;            // token of each pair
  std::vector<int32_t> choices_N;         // which of the token's K choices it is
  std::vector<int32_t> offsets_E1;        // pairs of expert e: offsets[e] ... offsets[e + 1]
  std::vector<int32_t> token_offsets_T1;  // into token_rows
  std::vector<int32_t> token_rows_N;      // pairs of a token in choice order: the order of the combining sum
  int64_t dropped = 0;                    // chosen pairs that capacity refused

  int64_t pairs() const { return static_cast<int64_t>(rows_N.size()); }
  int64_t experts() const { return static_cast<int64_t>(offsets_E1.size()) - 1; }
};

// Sorts the kept pairs. `keep_TK` is 0 for padding tokens and for what capacity dropped; `num_experts` is E.
Routing make_routing(std::span<const int32_t> ids_TK, std::span<const uint8_t> keep_TK, int64_t tokens,
                     int64_t num_experts);

}  // namespace conclave::moe
