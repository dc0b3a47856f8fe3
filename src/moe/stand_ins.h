// SPDX-License-Identifier: Apache-2.0
// What stands in for experts that a token did not choose, in the backward of its router (methods.md 1.20, grouped dense
// backpropagation): of expert j for token t, Ê_tj, the mean of what j gave those tokens of t's sequence that chose j
// and share at least one expert with t. Padding gives and gets nothing. No stage and no ranks: those are in
// moe/stand_in_stages.h. T tokens of the micro-batch, C picks, E experts, D width.
#pragma once

#include "core/batch.h"
#include "moe/routing.h"

namespace conclave::moe {

struct StandIns {
  const Choice& choice;
  const Batch& batch;
  Tensor rows_ND;                 // outputs of experts without weights, those that are known here
  std::vector<int64_t> row_of_C;  // which of them is of a pick; -1 where another rank has it
  Tensor dy_TD;                   // of all tokens

  // Writes dy_t · Ê_tj for the tokens t of one sequence and the experts j that they did not choose; leaves other
  // elements as they are. Of the sums over tokens it has the part that is known here, divided by the number of all, so
  // that results of ranks that know different rows add up. Sums run in double and in the order of tokens.
  void write_products(int64_t sequence, Tensor& products_TE) const;
};

}  // namespace conclave::moe
