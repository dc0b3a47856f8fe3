// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/columns.cuh"

namespace conclave::kernels::cuda {

void sum_columns(const ColumnSum& a, Stream stream) {
  if (a.rows == 0) return;
  with_width(a.real, a.n, {a.dy_TD, a.x_TD}, [&](auto zero, auto width) {
    const int64_t tiles = divide_up(a.n, kColumnThreads * width()), blocks = divide_up(a.rows, kColumnRows);
    launch("column_partials", column_partials_kernel<decltype(zero), width()>, {tiles * blocks, kColumnThreads}, stream,
           a);
  });
  constexpr int kThreads = kColumnShares * kWarp;
  const Shape shape{divide_up(a.n, kWarp), kThreads, kThreads * sizeof(float)};
  launch("add_column_partials", add_column_partials_kernel, shape, stream, a);
}

}  // namespace conclave::kernels::cuda
