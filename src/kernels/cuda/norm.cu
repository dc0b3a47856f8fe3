// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/norm.cuh"

namespace conclave::kernels::cuda {
namespace {

constexpr int kMostThreads = 512;

}  // namespace

void rms_norm(const RmsNorm& a, Stream stream) {
  with_width(a.real, a.n, {a.x_TD, a.weight_D, a.y_TD}, [&](auto zero, auto width) {
    const Shape shape{a.rows, threads_for_row(a.n, width(), kMostThreads), kScratchBytes};
    launch("rms_norm", rms_norm_kernel<decltype(zero), width()>, shape, stream, a);
  });
}

void rms_norm_backward_input(const RmsNormBackward& a, Stream stream) {
  with_width(a.real, a.n, {a.dy_TD, a.x_TD, a.weight_D, a.dx_TD}, [&](auto zero, auto width) {
    const Shape shape{a.rows, threads_for_row(a.n, width(), kMostThreads), kScratchBytes};
    launch("rms_norm_backward_input", rms_norm_backward_input_kernel<decltype(zero), width()>, shape, stream, a);
  });
}

}  // namespace conclave::kernels::cuda
