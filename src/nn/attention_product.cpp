// SPDX-License-Identifier: Apache-2.0
#include "nn/attention_product.h"

#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ones.h>

namespace conclave::nn {
namespace {

constexpr int64_t kBiasMultiple = 16;  // elements: where rows of a mask must begin for the efficient kernel

// For every head, in rows that begin where the kernel wants them.
Tensor efficient_bias(const AttentionState& state) {
  const int64_t S = state.mask.size(3), more = (kBiasMultiple - S % kBiasMultiple) % kBiasMultiple;
  const Tensor rows = more == 0 ? state.mask : at::constant_pad_nd(state.mask, {0, more}).narrow(3, 0, S);
  return rows.expand({-1, state.q_BNSH.size(1), -1, -1});
}

}  // namespace

AttentionKernel attention_kernel(at::Device device, at::ScalarType dtype, bool masked) {
  if (device.is_cpu()) return AttentionKernel::kCpuFlash;
  return dtype == at::kBFloat16 && !masked ? AttentionKernel::kFlash : AttentionKernel::kEfficient;
}

std::string name_of(AttentionKernel kernel) {
  switch (kernel) {
    case AttentionKernel::kCpuFlash:
      return "ATen flash attention for CPU";
    case AttentionKernel::kFlash:
      return "ATen flash attention (CUDA)";
    case AttentionKernel::kEfficient:
      return "ATen memory-efficient attention (CUDA)";
  }
  return "";
}

void try_attention(AttentionKernel kernel, at::Device device, at::ScalarType dtype, int64_t head_dim) {
  const auto some = [&] { return at::ones({1, 1, 16, head_dim}, at::TensorOptions().device(device).dtype(dtype)); };
  AttentionState state{.q_BNSH = some(), .k_BNSH = some(), .v_BNSH = some()};
  try {
    attention_forward(kernel, state);
    attention_backward(kernel, some(), state);
  } catch (const c10::OutOfMemoryError&) {
    throw;  // no fault of the width
  } catch (const c10::Error& error) {
    throw ConfigError("model.head_dim: {} does not take heads of width {} here: {}\n  Choose another head_dim.",
                      name_of(kernel), head_dim, error.what_without_backtrace());
  }
}

void attention_forward(AttentionKernel kernel, AttentionState& s) {
  const bool causal = !s.mask.defined();
  const auto mask = causal ? std::nullopt : std::optional<Tensor>(s.mask);
  switch (kernel) {
    case AttentionKernel::kCpuFlash:
      std::tie(s.out_BNSH, s.lse) =
          at::_scaled_dot_product_flash_attention_for_cpu(s.q_BNSH, s.k_BNSH, s.v_BNSH, 0.0, causal, mask, s.scale);
      return;
    case AttentionKernel::kFlash: {
      check(causal, "flash attention has no mask");
      auto all = at::_scaled_dot_product_flash_attention(s.q_BNSH, s.k_BNSH, s.v_BNSH, 0.0, true, false, s.scale);
      s.out_BNSH = std::get<0>(all);
      s.lse = std::get<1>(all);
      s.ends_q = std::get<2>(all);
      s.ends_k = std::get<3>(all);
      s.seed = std::get<6>(all);
      s.offset = std::get<7>(all);
      return;
    }
    case AttentionKernel::kEfficient:
      std::tie(s.out_BNSH, s.lse, s.seed, s.offset) = at::_scaled_dot_product_efficient_attention(
          s.q_BNSH, s.k_BNSH, s.v_BNSH, causal ? std::nullopt : std::optional<Tensor>(efficient_bias(s)), true, 0.0,
          causal, s.scale);
      return;
  }
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(AttentionKernel kernel, const Tensor& dout_BNSH,
                                                      const AttentionState& s) {
  const bool causal = !s.mask.defined();
  const auto mask = causal ? std::nullopt : std::optional<Tensor>(s.mask);
  const int64_t S = s.q_BNSH.size(2);
  switch (kernel) {
    case AttentionKernel::kCpuFlash:
      return at::_scaled_dot_product_flash_attention_for_cpu_backward(dout_BNSH, s.q_BNSH, s.k_BNSH, s.v_BNSH,
                                                                      s.out_BNSH, s.lse, 0.0, causal, mask, s.scale);
    case AttentionKernel::kFlash:
      return at::_scaled_dot_product_flash_attention_backward(dout_BNSH, s.q_BNSH, s.k_BNSH, s.v_BNSH, s.out_BNSH,
                                                              s.lse, s.ends_q, s.ends_k, S, S, 0.0, true, s.seed,
                                                              s.offset, s.scale);
    case AttentionKernel::kEfficient: {
      const auto all = at::_scaled_dot_product_efficient_attention_backward(
          dout_BNSH, s.q_BNSH, s.k_BNSH, s.v_BNSH, causal ? Tensor() : efficient_bias(s), s.out_BNSH, s.lse, s.seed,
          s.offset, 0.0, {true, true, true, false}, causal, s.scale);
      return {std::get<0>(all), std::get<1>(all), std::get<2>(all)};
    }
  }
  return {};
}

}  // namespace conclave::nn
