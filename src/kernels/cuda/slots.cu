// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/slots.cuh"

namespace conclave::kernels::cuda {

void slot_map(const Slots& a, Stream stream) {
  const size_t counts = kSlotWarps * a.experts * sizeof(int32_t);
  // One block at least: where there are no picks, experts still end somewhere.
  const int64_t chunks = slot_chunks(a.picks) > 0 ? slot_chunks(a.picks) : 1;
  launch("count_picks", count_picks_kernel, {slot_chunks(a.picks), kSlotThreads, counts}, stream, a);
  launch("place_picks", place_picks_kernel, {chunks, kSlotThreads, counts + (a.experts + 1) * sizeof(int32_t)}, stream,
         a);
}

void aggregate(const Aggregate& a, Stream stream) {
  with_width(a.real, a.n, {a.rows_ND, a.y_TD}, [&](auto zero, auto width) {
    launch("aggregate", aggregate_kernel<decltype(zero), width()>, shape_of_rows(a.tokens), stream, a);
  });
}

}  // namespace conclave::kernels::cuda
