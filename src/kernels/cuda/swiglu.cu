// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/swiglu.cuh"

namespace conclave::kernels::cuda {

void swiglu(const Swiglu& a, Stream stream) {
  with_width(a.real, a.n, {a.h_N2F, a.out_NF}, [&](auto zero, auto width) {
    launch("swiglu", swiglu_kernel<decltype(zero), width()>, shape_of_rows(a.rows), stream, a);
  });
}

void swiglu_backward(const SwigluBackward& a, Stream stream) {
  with_width(a.real, a.n, {a.dout_NF, a.h_N2F, a.dh_N2F, a.out_NF}, [&](auto zero, auto width) {
    launch("swiglu_backward", swiglu_backward_kernel<decltype(zero), width()>, shape_of_rows(a.rows), stream, a);
  });
}

}  // namespace conclave::kernels::cuda
