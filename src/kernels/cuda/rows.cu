// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/rows.cuh"

namespace conclave::kernels::cuda {

void gather_rows(const GatherRows& a, Stream stream) {
  with_width(a.real, a.n, {a.src_TD, a.dst_ND}, [&](auto zero, auto width) {
    launch("gather_rows", gather_rows_kernel<decltype(zero), width()>, shape_of_rows(a.count), stream, a);
  });
}

void embedding_backward(const EmbeddingBackward& a, Stream stream) {
  with_width(a.real, a.n, {a.dy_TD, a.dweight_VD}, [&](auto zero, auto width) {
    const Shape shape = shape_of_rows(a.tokens * divide_up(a.n, kWarp * width()));
    launch("embedding_backward", embedding_backward_kernel<decltype(zero), width()>, shape, stream, a);
  });
}

void add_bias(const AddBias& a, Stream stream) {
  with_width(a.real, a.n, {a.bias_O, a.y_TO}, [&](auto zero, auto width) {
    launch("add_bias", add_bias_kernel<decltype(zero), width()>, shape_of_rows(a.rows), stream, a);
  });
}

void add(const Add& a, Stream stream) {
  with_width(a.x_real, a.count, {a.x, a.y}, [&](auto zero, auto width) {
    with_real(a.y_real, [&](auto sum) {
      const Shape shape{divide_up(a.count, kElementThreads * width()), kElementThreads};
      launch("add", add_kernel<decltype(sum), decltype(zero), width()>, shape, stream, a);
    });
  });
}

}  // namespace conclave::kernels::cuda
