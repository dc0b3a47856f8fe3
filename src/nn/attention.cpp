// SPDX-License-Identifier: Apache-2.0
#include "nn/attention.h"

#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>

#include <limits>

#include "kernels/rows.h"
#include "nn/linear.h"

namespace conclave::nn {
namespace {

// Additive mask [B, 1, S, S]: 0 where a token may look, -inf elsewhere. Causal, and inside one segment.
Tensor segment_mask(const Batch& batch, const Tensor& like) {
  const int64_t S = batch.length;
  Tensor mask =
      at::full({batch.sequences, 1, S, S}, -std::numeric_limits<double>::infinity(), like.options().dtype(at::kDouble));
  double* out = mask.data_ptr<double>();
  for (int64_t b = 0; b < batch.sequences; ++b)
    for (int64_t i = 0; i < S; ++i)
      for (int64_t j = 0; j <= i; ++j)
        if (batch.segment_ids[b * S + i] == batch.segment_ids[b * S + j]) out[(b * S + i) * S + j] = 0;
  return mask.to(like.scalar_type());
}

}  // namespace

Attention::Attention(StageSite site, const Parameters& parameters, const AttentionConfig& config,
                     AttentionWeights weights, Wire wire)
    : Stage(std::move(site)), parameters_(parameters), config_(config), weights_(std::move(weights)), wire_(wire) {}

std::vector<ParameterId> Attention::parameters() const {
  std::vector<ParameterId> ids{weights_.qkv, weights_.output};
  if (weights_.qkv_bias) ids.push_back(*weights_.qkv_bias);
  for (const auto& norm : {weights_.q_norm, weights_.k_norm})
    if (norm) ids.push_back(norm->weight());
  return ids;
}

Tensor Attention::normed(const Tensor& x_TNH, const std::optional<Norm>& norm, Norm::Saved& saved) const {
  if (!norm) return x_TNH;
  const Tensor rows = config_.norm_full ? x_TNH.view({x_TNH.size(0), -1}) : x_TNH.view({-1, x_TNH.size(2)});
  return norm->forward(rows, saved).view_as(x_TNH);
}

Tensor Attention::norm_backward(const Tensor& dy_TNH, const std::optional<Norm>& norm, const Norm::Saved& saved,
                                Tensor& dy_rows) const {
  if (!norm) return dy_TNH;
  dy_rows = dy_TNH.reshape(saved.x.sizes());
  return norm->backward_input(dy_rows, saved).view_as(dy_TNH);
}

Tensor Attention::heads_first(const Tensor& x_TNH, const Batch& batch, int64_t repeat) const {
  const Tensor x_BSNH = x_TNH.view({batch.sequences, batch.length, x_TNH.size(1), x_TNH.size(2)});
  if (repeat == 1) return x_BSNH.transpose(1, 2);
  return x_BSNH.unsqueeze(3).expand({-1, -1, -1, repeat, -1}).flatten(2, 3).transpose(1, 2);
}

Tensor Attention::tokens_first(const Tensor& dx_BNSH, int64_t repeat) const {
  const Tensor dx_BSNH = dx_BNSH.transpose(1, 2);
  const Tensor summed = repeat == 1 ? dx_BSNH : dx_BSNH.unflatten(2, {-1, repeat}).sum(3);
  return summed.contiguous().view({-1, summed.size(2), summed.size(3)});
}

void Attention::forward(Frame& frame) {
  const Batch& batch = frame.batch();
  const Tensor& x = frame.value(wire_.input);
  auto& saved = frame.saved<Saved>(index());
  if (!rope_.cos_PH.defined()) {
    rope_ = kernels::rope_table(config_.max_positions, config_.head_dim, config_.rope_theta, x.scalar_type());
  }
  Tensor qkv = linear_forward(x, parameters_.value(weights_.qkv));
  frame.poll();
  if (weights_.qkv_bias) kernels::add_bias(qkv, parameters_.value(*weights_.qkv_bias));
  const auto part = [&](int64_t first, int64_t heads) {
    return qkv.narrow(1, first * config_.head_dim, heads * config_.head_dim)
        .contiguous()
        .view({-1, heads, config_.head_dim});
  };
  const int64_t N = config_.heads, M = config_.kv_heads;
  Tensor q = normed(part(0, N), weights_.q_norm, saved.q_norm);
  Tensor k = normed(part(N, M), weights_.k_norm, saved.k_norm);
  kernels::rope(q, batch.position_ids, rope_, false);
  kernels::rope(k, batch.position_ids, rope_, false);
  saved.q_BNSH = heads_first(q, batch, 1);
  saved.k_BNSH = heads_first(k, batch, N / M);
  saved.v_BNSH = heads_first(part(N + M, M), batch, N / M);
  if (config_.document_mask) saved.mask = segment_mask(batch, q);
  const auto mask = config_.document_mask ? std::optional<Tensor>(saved.mask) : std::nullopt;
  std::tie(saved.out_BNSH, saved.lse) = at::_scaled_dot_product_flash_attention_for_cpu(
      saved.q_BNSH, saved.k_BNSH, saved.v_BNSH, 0.0, !config_.document_mask, mask);
  frame.poll();
  saved.context_TD = saved.out_BNSH.transpose(1, 2).reshape({x.size(0), N * config_.head_dim});
  frame.value(wire_.output) = linear_forward(saved.context_TD, parameters_.value(weights_.output));
  if (!frame.training()) frame.forget(index());
}

void Attention::backward_input(Frame& frame) {
  const Batch& batch = frame.batch();
  auto& saved = frame.saved<Saved>(index());
  const int64_t N = config_.heads, M = config_.kv_heads;
  const Tensor dcontext = linear_backward_input(frame.grad(wire_.output), parameters_.value(weights_.output));
  frame.poll();
  const Tensor dout = heads_first(dcontext.view({-1, N, config_.head_dim}), batch, 1);
  const auto mask = config_.document_mask ? std::optional<Tensor>(saved.mask) : std::nullopt;
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      dout, saved.q_BNSH, saved.k_BNSH, saved.v_BNSH, saved.out_BNSH, saved.lse, 0.0, !config_.document_mask, mask);
  frame.poll();
  Tensor dq_TNH = tokens_first(dq, 1);
  Tensor dk_TMH = tokens_first(dk, N / M);
  kernels::rope(dq_TNH, batch.position_ids, rope_, true);
  kernels::rope(dk_TMH, batch.position_ids, rope_, true);
  const int64_t T = dq_TNH.size(0);
  saved.dqkv = at::cat({norm_backward(dq_TNH, weights_.q_norm, saved.q_norm, saved.dq).view({T, -1}),
                        norm_backward(dk_TMH, weights_.k_norm, saved.k_norm, saved.dk).view({T, -1}),
                        tokens_first(dv, N / M).view({T, -1})},
                       1);
  frame.add_grad(wire_.input, linear_backward_input(saved.dqkv, parameters_.value(weights_.qkv)));
}

void Attention::backward_weight(Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  auto& gradients = frame.gradients();
  linear_backward_weight(frame.grad(wire_.output), saved.context_TD, gradients.fresh,
                         gradients.view(parameters_[weights_.output]));
  frame.poll();
  linear_backward_weight(saved.dqkv, frame.value(wire_.input), gradients.fresh,
                         gradients.view(parameters_[weights_.qkv]));
  if (weights_.qkv_bias) {
    Tensor dbias = gradients.view(parameters_[*weights_.qkv_bias]);
    kernels::sum_columns(saved.dqkv, dbias);
  }
  if (weights_.q_norm) weights_.q_norm->backward_weight(saved.dq, saved.q_norm, gradients);
  if (weights_.k_norm) weights_.k_norm->backward_weight(saved.dk, saved.k_norm, gradients);
  frame.forget(index());
}

}  // namespace conclave::nn
