// SPDX-License-Identifier: Apache-2.0
// The order of rows that arrive from several ranks: each rank's come sorted by expert, grouped products want them
// sorted by expert whoever sent them. Index arithmetic on the counts' device alone: the caller knows how many rows
// there are, so nothing waits. S sources, E local experts, R rows.
#pragma once

#include "core/tensor.h"

namespace conclave::kernels {

// Index tensors are int32.
struct ArrivalOrder {
  Tensor ends_E;     // rows of expert e, once sorted: ends[e - 1] ... ends[e]
  Tensor arrived_R;  // of each row sorted by (expert, source): where it arrived; within both rows keep their order
  Tensor sorted_R;   // the inverse: of each row that arrived, its place among the sorted ones
};

// `counts_SE`, int32, has how many rows of each expert each source sends; `rows` is their sum, which is not checked.
ArrivalOrder arrival_order(const Tensor& counts_SE, int64_t rows);

}  // namespace conclave::kernels
