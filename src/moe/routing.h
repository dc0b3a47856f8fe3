// SPDX-License-Identifier: Apache-2.0
// What a router decided for one micro-batch: the choice of all tokens, and the kept (token, expert) pairs as a
// compressed list sorted by (expert, token). General enough for any number of experts per token, for drops and for
// experts that nobody chose. T tokens, C picks, E experts, N kept pairs.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "moe/picks.h"

namespace conclave::moe {

// How probs become the affinities that balancing losses and figures speak of.
enum class Affinity {
  kSoftmax,     // they are: rows add up to 1
  kNormalised,  // divided by the sum of their row
  kNone,        // there are none
};

// Experts that need no other rank: null ones, copies.
struct HomeColumns {
  int64_t count = 0;
  bool pooled = false;  // losses see them as one, whose choices fall on all of them evenly
  double balance = 1;   // their weight in a switch loss
};

// What a router chose for each token, before any drop. Routers that need no score leave tensors undefined.
struct Choice {
  Tensor scores_TS;  // what the router was given: its columns are the router's business
  Tensor logits_TE;  // by which it chose
  Tensor probs_TE;   // scores of all experts: softmax, sigmoid, ...
  Tensor lse_T;      // logsumexp of the logits (z-loss)
  Affinity affinity = Affinity::kSoftmax;
  Picks picks;                              // best first
  std::optional<Picks> unbiased;            // by score alone, where the picks are not: what auxiliary losses count
  std::optional<Picks> asked;               // as the router had them, where capacity sent some elsewhere
  std::vector<uint8_t> declined_C;          // 1 for picks that the router itself does not send; empty = none
  Tensor raw_C;                             // scores of the picks, before normalisation and scaling
  Tensor weights_C;                         // of the picks
  Tensor clean_TE, deviation_TE, noise_TE;  // noisy routers: logits are clean + deviation · noise
  int64_t experts = 0;                      // columns, those that stay at home included
  HomeColumns home = {};                    // the last of them: their picks are declined, nobody is sent anything
  Tensor home_TV;                           // what to add at home: column 0 times x, the others times vectors
  std::vector<double> sums;                 // what the router wants added up over the micro-batches of a step

  int64_t tokens() const { return picks.tokens(); }
  const Picks& wanted() const { return asked ? *asked : picks; }
  const Picks& counted() const { return unbiased ? *unbiased : wanted(); }
};

// Gradients with respect to parts of a choice; undefined = none.
struct ChoiceGradients {
  Tensor weights_C = {}, logits_TE = {}, clean_TE = {}, deviation_TE = {}, home_TV = {};
  // Of experts that a token has not chosen: what their weight would gain, by outputs that stand in for theirs.
  Tensor stand_ins_TE = {};
};

// Consecutive tokens of a micro-batch.
struct TokenRange {
  int64_t first = 0, count = 0;
};

struct Routing {
  int64_t tokens = 0;
  std::vector<int32_t> rows_N;            // token of each pair, from the first of the range on
  std::vector<int32_t> picks_N;           // which of the choice's picks it is
  std::vector<int32_t> offsets_E1;        // pairs of expert e: offsets[e] ... offsets[e + 1]
  std::vector<int32_t> token_offsets_T1;  // into token_rows
  std::vector<int32_t> token_rows_N;      // pairs of a token in the order of its picks: the order of the combining sum
  int64_t dropped = 0;                    // picks that capacity refused

  int64_t pairs() const { return static_cast<int64_t>(rows_N.size()); }
  int64_t experts() const { return static_cast<int64_t>(offsets_E1.size()) - 1; }
};

// Sorts the kept pairs of some tokens. `keep_C` is 0 for picks of padding and for what capacity dropped.
Routing make_routing(const Picks& picks, std::span<const uint8_t> keep_C, TokenRange own, int64_t num_experts);

}  // namespace conclave::moe
