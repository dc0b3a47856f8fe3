// SPDX-License-Identifier: Apache-2.0
// SwiGLU with the routing weight folded in: out = scale * silu(gate) * up, per row (Shazeer 2020). Float or double.
// h holds gate in columns 0 ... F-1 and up in F ... 2F-1: one product makes both. Scales of bf16 rows are float.
#pragma once

#include "core/tensor.h"

namespace conclave::kernels {

// `scale_N`: one factor per row; undefined means 1.
void swiglu(const Tensor& h_N2F, const Tensor& scale_N, Tensor& out_NF);

// What swiglu_backward writes (does not add to), memory made by the caller.
struct SwigluGradients {
  Tensor dh_N2F;    // may be h_N2F itself
  Tensor dscale_N;  // sum_f dout * silu(gate) * up; undefined = not wanted
  Tensor out_NF;    // the scaled activations again, which the gradient of the down projection needs
};

void swiglu_backward(const Tensor& dout_NF, const Tensor& h_N2F, const Tensor& scale_N, SwigluGradients& gradients);

}  // namespace conclave::kernels
