// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/rope.cuh"

namespace conclave::kernels::cuda {

void rope(const Rope& a, Stream stream) {
  with_width(a.real, a.half, {a.x_TND, a.cos_PH, a.sin_PH}, [&](auto zero, auto width) {
    launch("rope", rope_kernel<decltype(zero), width()>, shape_of_rows(a.tokens * a.heads), stream, a);
  });
}

}  // namespace conclave::kernels::cuda
