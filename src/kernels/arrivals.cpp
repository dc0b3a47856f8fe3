// SPDX-License-Identifier: Apache-2.0
#include "kernels/arrivals.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>

#include "kernels/arguments.h"

namespace conclave::kernels {
namespace {

// Row i lies in the segment whose end is the first above i (segments without rows are stepped over) and moves as far as
// its segment does.
Tensor moved(const Tensor& ends, const Tensor& shifts, int64_t rows) {
  const Tensor places = at::arange(rows, ends.options());
  const Tensor segments = at::searchsorted(ends, places, /*out_int32=*/true, /*right=*/true);
  return places + shifts.index_select(0, segments);
}

}  // namespace

ArrivalOrder arrival_order(const Tensor& counts_SE, int64_t rows) {
  check_dimensions("arrival_order", {counts_SE, "counts_SE"}, 2);
  check(counts_SE.scalar_type() == at::kInt, "arrival_order: counts are int32");
  const int64_t S = counts_SE.size(0), E = counts_SE.size(1);
  // Segments (source, expert) as they arrive, and (expert, source) as they are wanted.
  const Tensor arriving = counts_SE.reshape({-1}), sorted = counts_SE.t().reshape({-1});
  const Tensor arriving_ends = arriving.cumsum(0, at::kInt), sorted_ends = sorted.cumsum(0, at::kInt);
  const Tensor arriving_begins = arriving_ends - arriving, sorted_begins = sorted_ends - sorted;
  const Tensor back_ES = arriving_begins.view({S, E}).t().reshape({-1}) - sorted_begins;
  const Tensor there_SE = sorted_begins.view({E, S}).t().reshape({-1}) - arriving_begins;
  return {.ends_E = sorted_ends.view({E, S}).select(1, S - 1).contiguous(),
          .arrived_R = moved(sorted_ends, back_ES, rows),
          .sorted_R = moved(arriving_ends, there_SE, rows)};
}

}  // namespace conclave::kernels
