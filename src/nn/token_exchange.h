// SPDX-License-Identifier: Apache-2.0
// The seams of tensor and sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022): between stages that work
// on a rank's share of the tokens and stages that work on all tokens with a share of the heads, widths or vocabulary.
// Rank r of t holds the tokens r·T/t ... (r+1)·T/t − 1 of a micro-batch. Sums over ranks run in rank order, so every
// rank has the same bits.
#pragma once

#include "comm/group.h"
#include "nn/stage.h"

namespace conclave::nn {

// What one direction does with a tensor's rows. The others' rows are collective.
enum class TokenMove {
  kKeep,           // nothing
  kGather,         // [T/t, D] of each rank → [T, D]
  kSlice,          // [T, D], equal on all ranks → own rows [T/t, D]
  kReduceScatter,  // [T, D] terms of a sum → own rows of the sum [T/t, D]
  kAllReduce,      // [T, D] terms of a sum → the sum [T, D]
};

struct TokenMoves {
  TokenMove forward, backward;
  // What enters a region is gathered again with the norm before it; what leaves one is a sum, whose terms would be
  // needed.
  Redo redo;
};

// Into and out of a region where each rank works on all tokens with its share of the weights. With sequence parallelism
// the tokens outside are shared out, without it every rank has them all.
TokenMoves enter_tensor_region(bool sequence_parallel);
TokenMoves leave_tensor_region(bool sequence_parallel);
// Into and out of a region where each rank works on its share of the tokens alone, from and to one where all have all.
inline constexpr TokenMoves kShareTokens{TokenMove::kSlice, TokenMove::kGather, Redo::kSelective};
inline constexpr TokenMoves kJoinTokens{TokenMove::kGather, TokenMove::kSlice, Redo::kNever};

// Throws BugError unless the rows divide over the ranks (the configuration check refuses those). Collective.
Tensor move_tokens(TokenMove move, const Tensor& x, const comm::Group& tp);

class TokenExchange : public Stage {
 public:
  TokenExchange(StageSite site, const comm::Group& tp, TokenMoves moves, Wire wire);
  std::vector<Slot> inputs() const override { return {wire_.input}; }
  std::vector<Slot> outputs() const override { return {wire_.output}; }
  bool backward_reads_inputs() const override { return false; }
  Redo redo() const override { return moves_.redo; }
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;

 private:
  comm::Group tp_;
  TokenMoves moves_;
  Wire wire_;
};

}  // namespace conclave::nn
