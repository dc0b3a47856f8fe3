// SPDX-License-Identifier: Apache-2.0
#include "nn/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "kernels/bf16.h"
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

// The same from segments that lie on a device.
Tensor segment_mask(const Tensor& segments_BS, const Tensor& like) {
  const int64_t B = segments_BS.size(0), S = segments_BS.size(1);
  const Tensor past = at::ones({S, S}, segments_BS.options().dtype(at::kBool)).tril();
  const Tensor sees = segments_BS.unsqueeze(2).eq(segments_BS.unsqueeze(1)).logical_and(past);
  return at::zeros({B, 1, S, S}, like.options())
      .masked_fill_(sees.logical_not().unsqueeze(1), -std::numeric_limits<double>::infinity());
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

void Attention::rotate(Tensor& x_TNH, const Frame& frame, bool inverse) {
  if (!rope_.cos_PH.defined()) {
    rope_ = kernels::rope_table(config_.max_positions, config_.head_dim, config_.rope_theta, kernels::wide_type(x_TNH));
    for (Tensor* part : {&rope_.cos_PH, &rope_.sin_PH}) *part = part->to(x_TNH.device());
  }
  if (frame.device() != nullptr) {
    kernels::rope(x_TNH, frame.device()->batch.positions_T, rope_, inverse);
  } else {
    kernels::rope(x_TNH, frame.batch().position_ids, rope_, inverse);
  }
}

AttentionKernel Attention::kernel(const Tensor& x) const {
  return attention_kernel(x.device(), x.scalar_type(), config_.document_mask);
}

void Attention::forward(Frame& frame) {
  const Batch& batch = frame.batch();
  const Tensor& x = frame.value(wire_.input);
  auto& saved = frame.saved<Saved>(index());
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
  rotate(q, frame, false);
  rotate(k, frame, false);
  saved.product.q_BNSH = heads_first(q, batch, 1);
  saved.product.k_BNSH = heads_first(k, batch, N / M);
  saved.product.v_BNSH = heads_first(part(N + M, M), batch, N / M);
  if (config_.document_mask) {
    saved.product.mask =
        frame.device() != nullptr ? segment_mask(frame.device()->batch.segment_ids_BS, q) : segment_mask(batch, q);
  }
  saved.product.scale = config_.score_scale;
  attention_forward(kernel(x), saved.product);
  frame.poll();
  saved.context_TD = saved.product.out_BNSH.transpose(1, 2).reshape({x.size(0), N * config_.head_dim});
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
  const auto [dq, dk, dv] = attention_backward(kernel(dout), dout, saved.product);
  frame.poll();
  Tensor dq_TNH = tokens_first(dq, 1);
  Tensor dk_TMH = tokens_first(dk, N / M);
  rotate(dq_TNH, frame, true);
  rotate(dk_TMH, frame, true);
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
