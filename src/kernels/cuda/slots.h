// SPDX-License-Identifier: Apache-2.0
// Where rows lie on the device: kernels/moe_device.h says what is computed. Picks are counted in chunks, then every
// chunk finds its first slot of each expert from the counts of the chunks before: two launches, no block waits for
// another, and the order is that of the tokens.
#pragma once

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

// Picks of one block.
inline constexpr int64_t kSlotChunk = 4096;
constexpr int64_t slot_chunks(int64_t picks) { return (picks + kSlotChunk - 1) / kSlotChunk; }

struct Slots {
  int64_t picks;  // T * K
  int32_t experts, top_k;
  const int32_t *ids_TK, *counts_E;
  int32_t *ends_E, *rows_N, *picks_N, *slots_TK;
  int32_t* chunk_counts;  // memory to work in: [slot_chunks(picks), experts]
};
void slot_map(const Slots& a, Stream stream);

// y[t] = the sum of rows slots[t, 0], slots[t, 1], ...: k rows are read per token and nothing is added twice, so no
// atomics. Sums are fp32, rounded once.
struct Aggregate {
  Real real;
  int64_t rows, tokens, n;
  int32_t top_k;
  const void* rows_ND;
  const int32_t* slots_TK;  // below 0: nothing; not a row: NaN
  void* y_TD;
};
void aggregate(const Aggregate& a, Stream stream);

}  // namespace conclave::kernels::cuda
