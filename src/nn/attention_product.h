// SPDX-License-Identifier: Apache-2.0
// softmax(q·kᵀ·scale)·v of whole sequences, causal, through one of ATen's kernels. Which one is chosen here, by device
// and type, never by ATen: so it can be named when a run starts. B sequences of S tokens, N heads of width H, keys and
// values repeated to N heads.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "core/tensor.h"

namespace conclave::nn {

enum class AttentionKernel {
  kCpuFlash,   // any type, with or without mask
  kFlash,      // CUDA, bf16, no mask
  kEfficient,  // CUDA, the rest
};

AttentionKernel attention_kernel(at::Device device, at::ScalarType dtype, bool masked);
// For people.
std::string name_of(AttentionKernel kernel);
// Runs the kernel on a few numbers. Throws ConfigError with what ATen says where it refuses this head width.
void try_attention(AttentionKernel kernel, at::Device device, at::ScalarType dtype, int64_t head_dim);

struct AttentionState {
  Tensor q_BNSH = {}, k_BNSH = {}, v_BNSH = {};
  std::optional<double> scale = {};  // none: 1 / √H
  Tensor mask = {};                  // additive [B, 1, S, S], which then is causal itself; undefined = causal
  Tensor out_BNSH = {};              // from here on set by forward
  Tensor lse = {}, seed = {}, offset = {}, ends_q = {}, ends_k = {};
};

// Sets what follows the mask.
void attention_forward(AttentionKernel kernel, AttentionState& state);
// dq, dk, dv.
std::tuple<Tensor, Tensor, Tensor> attention_backward(AttentionKernel kernel, const Tensor& dout_BNSH,
                                                      const AttentionState& state);

}  // namespace conclave::nn
