// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/optimizer.cuh"

namespace conclave::kernels::cuda {

void slice_sums_of_squares(const float* x, int64_t count, double* sums_S, Stream stream) {
  const Shape shape{slices_of(count), kFlatThreads, kSlice / kChunk * sizeof(double)};
  launch("slice_sums_of_squares", slice_sums_kernel, shape, stream, x, count, sums_S);
}

void tree_sum(double* values, int64_t count, double* total, Stream stream) {
  launch("tree_sum", tree_sum_kernel, {1, 1024}, stream, values, count, total);
}

void first_non_finite(const float* x, int64_t count, int64_t* found_S, int64_t* index, Stream stream) {
  const Shape slices{slices_of(count), kFlatThreads, kScratchBytes}, one{1, kFlatThreads, kScratchBytes};
  launch("first_non_finite", first_non_finite_kernel, slices, stream, x, count, found_S);
  launch("first_non_finite", least_index_kernel, one, stream, found_S, slices_of(count), index);
}

void adamw(const AdamW& a, Stream stream) {
  uintptr_t low_bits = reinterpret_cast<uintptr_t>(a.copy) % 8 * 2;
  for (const float* buffer : std::initializer_list<const float*>{a.parameters, a.m, a.v, a.gradients}) {
    low_bits |= reinterpret_cast<uintptr_t>(buffer) % 16;
  }
  launch("adamw", adamw_kernel, {a.block_count, kFlatThreads}, stream, a, low_bits == 0);
}

}  // namespace conclave::kernels::cuda
