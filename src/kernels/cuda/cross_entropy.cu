// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cross_entropy.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kMostThreads = 1024;

Shape shape_of_row_blocks(int64_t rows, int64_t n, int width) {
  return {rows, threads_for_row(n, width, kMostThreads), kScratchBytes};
}

}  // namespace

void cross_entropy_rows(const CrossEntropy& a, Stream stream) {
  with_width(a.real, a.n, {a.logits_NV}, [&](auto zero, auto width) {
    launch("cross_entropy_rows", cross_entropy_rows_kernel<decltype(zero), width()>,
           shape_of_row_blocks(a.rows, a.n, width()), stream, a);
  });
}

void cross_entropy_part(const CrossEntropyPart& a, Stream stream) {
  with_width(a.real, a.n, {a.logits_NV}, [&](auto zero, auto width) {
    launch("cross_entropy_part", cross_entropy_part_kernel<decltype(zero), width()>,
           shape_of_row_blocks(a.rows, a.n, width()), stream, a);
  });
}

void finish_cross_entropy_part(const CrossEntropyPart& a, Stream stream) {
  with_width(a.real, a.n, {a.logits_NV}, [&](auto zero, auto width) {
    launch("finish_cross_entropy_part", finish_cross_entropy_part_kernel<decltype(zero), width()>,
           shape_of_row_blocks(a.rows, a.n, width()), stream, a);
  });
}

}  // namespace conclave::kernels::cuda
