// SPDX-License-Identifier: Apache-2.0
// The references of slot_map and aggregate.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <vector>

#include "kernels/arguments.h"
#include "kernels/moe_device.h"
#include "kernels/on_device.h"
#include "kernels/parallel.h"
#include "kernels/placement.h"
#include "kernels/rows.h"

namespace conclave::kernels {

SlotMap slot_map(const Tensor& ids_TK, const Tensor& counts_E) {
  if (on_device(ids_TK)) return slot_map_on_device(ids_TK, counts_E);
  const char* name = "slot_map";
  check_dimensions(name, {ids_TK, "ids_TK"}, 2);
  check_dimensions(name, {counts_E, "counts_E"}, 1);
  const int64_t N = ids_TK.numel(), E = counts_E.numel(), k = ids_TK.size(1);
  const auto ids = elements<int32_t>(ids_TK), counts = elements<int32_t>(counts_E);
  SlotMap map{at::empty({E}, counts_E.options()), at::full({N}, -1, ids_TK.options()),
              at::full({N}, -1, ids_TK.options()), at::full({ids_TK.size(0), k}, -1, ids_TK.options())};
  const auto ends = elements<int32_t>(map.ends_E), rows = elements<int32_t>(map.rows_N);
  const auto picks = elements<int32_t>(map.picks_N), slots = elements<int32_t>(map.slots_TK);
  std::vector<int32_t> next(E);
  int32_t end = 0;
  for (int64_t e = 0; e < E; ++e) {
    next[e] = end;
    ends[e] = end += counts[e];
  }
  // Walking tokens in order makes the sort stable.
  for (int64_t i = 0; i < N; ++i) {
    if (ids[i] < 0) continue;
    check_index(name, "ids_TK", ids[i], E);
    const int32_t row = next[ids[i]]++;
    check(row < ends[ids[i]], "slot_map: counts_E counts ids_TK");
    rows[row] = static_cast<int32_t>(i / k);
    picks[row] = static_cast<int32_t>(i);
    slots[i] = row;
  }
  return map;
}

void aggregate(const Tensor& rows_ND, const Tensor& slots_TK, Tensor& y_TD) {
  if (on_device(rows_ND)) return aggregate_on_device(rows_ND, slots_TK, y_TD);
  check_dimensions("aggregate", {slots_TK, "slots_TK"}, 2);
  std::vector<int32_t> offsets{0}, rows;
  const auto slots = elements<int32_t>(slots_TK);
  const int64_t k = slots_TK.size(1);
  for (int64_t t = 0; t < slots_TK.size(0); ++t) {
    for (int64_t j = 0; j < k; ++j)
      if (slots[t * k + j] >= 0) rows.push_back(slots[t * k + j]);
    offsets.push_back(static_cast<int32_t>(rows.size()));
  }
  sum_rows(rows_ND, offsets, rows, false, y_TD);
}

}  // namespace conclave::kernels
