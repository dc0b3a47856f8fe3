// SPDX-License-Identifier: Apache-2.0
// How the kernels share rows among threads. The split never decides a bit: every row, column or slice is computed by
// one thread, the same way whichever thread it is. How many threads there are is the caller's business
// (at::set_num_threads).
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace conclave::kernels {

// Element operations below which handing work to another thread costs more than it saves (about 10 microseconds).
inline constexpr int64_t kWorkPerThread = 16384;

// Columns that one thread takes at a time where a sum runs down the rows: whole cache lines, so no two threads share
// one.
inline constexpr int64_t kColumnBlock = 64;

// Rows that are summed into one partial sum before it is added to the total: rounding grows with 64 + rows / 64, not
// rows.
inline constexpr int64_t kRowBlock = 64;

// Calls f(begin, end) on disjoint ranges that cover [0, rows), at most one range per thread and none if there are no
// rows. `work_per_row` counts element operations; it decides how few rows are worth a thread.
template <typename F>
void for_rows(int64_t rows, int64_t work_per_row, const F& f) {
  at::parallel_for(0, rows, std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, work_per_row)), f);
}

// Calls f(begin, end) on column ranges that cover [0, columns): the form of every sum over rows, whose order within a
// column must not depend on the threads.
template <typename F>
void for_column_blocks(int64_t columns, int64_t work_per_column, const F& f) {
  const int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock;
  for_rows(blocks, kColumnBlock * work_per_column, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b * kColumnBlock, std::min(columns, (b + 1) * kColumnBlock));
  });
}

}  // namespace conclave::kernels
