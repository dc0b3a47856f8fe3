// SPDX-License-Identifier: Apache-2.0
// A whole mixture-of-experts layer in plain ATen, every expert on every token, differentiated by autograd: what the
// stages are compared with. Slow and obvious on purpose; any floating dtype. T tokens, E experts, D width, F expert
// width.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "core/batch.h"
#include "core/tensor.h"
#include "moe/moe_config.h"

namespace conclave::testing {

struct ReferenceWeights {
  Tensor router_ED, gate_up_E2FD, down_EDF;
};

// 1 where expert e is among the k best of `scores` + `bias`.
inline Tensor chosen_mask(const Tensor& scores_TE, const Tensor& bias_E, int64_t k) {
  Tensor selection = scores_TE.detach();
  if (bias_E.defined()) selection = selection + bias_E;
  const Tensor ids = std::get<1>(at::topk(selection, k, 1));
  return at::zeros_like(selection).scatter(1, ids, 1.0);
}

inline Tensor reference_scores(const Tensor& logits_TE, const moe::RouterConfig& router) {
  return router.score == moe::Score::kSigmoid ? at::sigmoid(logits_TE) : at::softmax(logits_TE, 1);
}

// Combine weights before drops; zero for what is not chosen.
inline Tensor reference_weights(const Tensor& logits_TE, const Tensor& mask_TE, const moe::RouterConfig& router) {
  Tensor weights;
  if (router.score == moe::Score::kSoftmax && !router.score_before_topk) {
    weights = at::softmax(logits_TE.masked_fill(mask_TE == 0, -std::numeric_limits<double>::infinity()), 1);
  } else {
    weights = reference_scores(logits_TE, router) * mask_TE;
  }
  if (router.norm_topk_prob) weights = weights / weights.sum(1, true);
  return weights * router.routed_scaling_factor;
}

// The admitted set by its definition, O(T·E) questions of O(T·k): a pair is admitted when fewer than `capacity` pairs
// of its expert come before it. Position: earlier tokens. Score: larger weights, of equal ones earlier tokens. Slot:
// what a token wants more, then earlier tokens. Bpr: what a token wants more, then tokens with larger best weights,
// then earlier ones. A token wants more what has the larger weight, of equal ones the lower expert.
inline Tensor admitted_by_definition(const Tensor& weights_TE, const Tensor& mask_TE, moe::DropPolicy policy,
                                     int64_t capacity) {
  const Tensor weights = weights_TE.detach().to(at::kDouble), mask = mask_TE.to(at::kDouble);
  Tensor admitted = at::zeros_like(mask);
  const auto w = weights.accessor<double, 2>(), chosen = mask.accessor<double, 2>();
  auto keep = admitted.accessor<double, 2>();
  const auto place = [&](int64_t t, int64_t e) {
    double slot = 0, most = 0;
    for (int64_t other = 0; other < mask.size(1); ++other) {
      if (chosen[t][other] == 0) continue;
      slot += w[t][other] > w[t][e] || (w[t][other] == w[t][e] && other < e);
      most = std::max(most, w[t][other]);
    }
    const auto token = static_cast<double>(t);
    switch (policy) {
      case moe::DropPolicy::kScore:
        return std::array{-w[t][e], token, 0.0};
      case moe::DropPolicy::kSlot:
        return std::array{slot, token, 0.0};
      case moe::DropPolicy::kBpr:
        return std::array{slot, -most, token};
      default:
        return std::array{token, 0.0, 0.0};
    }
  };
  for (int64_t t = 0; t < mask.size(0); ++t) {
    for (int64_t e = 0; e < mask.size(1); ++e) {
      if (chosen[t][e] == 0) continue;
      int64_t before = 0;
      for (int64_t other = 0; other < mask.size(0); ++other)
        before += chosen[other][e] != 0 && place(other, e) < place(t, e);
      keep[t][e] = before < capacity;
    }
  }
  return admitted.to(mask_TE.scalar_type());
}

// Column of ones for real tokens, zeros for padding.
inline Tensor real_tokens(const Batch& batch, at::ScalarType dtype) {
  Tensor real = at::zeros({batch.tokens_count(), 1}, dtype);
  for (int64_t t = 0; t < batch.tokens_count(); ++t) real[t][0] = batch.segment_ids[t] < 0 ? 0.0 : 1.0;
  return real;
}

// Output of every expert for every token: [E, T, D].
inline Tensor all_experts(const Tensor& x_TD, const ReferenceWeights& weights) {
  const int64_t F = weights.down_EDF.size(2);
  const Tensor h = at::matmul(x_TD.unsqueeze(0), weights.gate_up_E2FD.transpose(1, 2));
  return at::matmul(at::silu(h.narrow(2, 0, F)) * h.narrow(2, F, F), weights.down_EDF.transpose(1, 2));
}

struct ReferenceLayer {
  moe::MoeConfig config;
  int64_t top_k = 1;
  Tensor bias_E;          // undefined = none
  int64_t capacity = -1;  // -1 = dropless

  // y [T, D]; padding gives zeros.
  Tensor operator()(const Tensor& x_TD, const ReferenceWeights& weights, const Batch& batch) const {
    const Tensor logits = at::matmul(x_TD, weights.router_ED.t());
    const bool over_chosen = config.router.score == moe::Score::kSoftmax && !config.router.score_before_topk;
    const Tensor selection = over_chosen ? logits : reference_scores(logits, config.router);
    const Tensor mask = chosen_mask(selection, bias_E, top_k) * real_tokens(batch, x_TD.scalar_type());
    Tensor gates = reference_weights(logits, chosen_mask(selection, bias_E, top_k), config.router) * mask;
    if (capacity >= 0) {
      const Tensor keep = admitted_by_definition(gates, mask, config.capacity.policy, capacity);
      gates = gates * keep;
      if (config.capacity.renormalize) {
        const Tensor sum = gates.sum(1, true);
        gates = gates / (sum + (sum == 0).to(sum.scalar_type())) * config.router.routed_scaling_factor;
      }
    }
    return (all_experts(x_TD, weights) * gates.t().unsqueeze(2)).sum(0);
  }
};

// Auxiliary loss of one group of tokens without its coefficient, from the formulas of methods.md 0.5. Padding is left
// out.
inline Tensor reference_switch_loss(const Tensor& logits_TE, const moe::RouterConfig& router,
                                    moe::Convention convention, int64_t k, const Tensor& real_T1) {
  const int64_t E = logits_TE.size(1);
  const Tensor scores = reference_scores(logits_TE, router);
  const Tensor tokens = real_T1.sum();
  const Tensor affinity = ((scores / scores.sum(1, true)) * real_T1).sum(0) / tokens;
  const Tensor all = (chosen_mask(scores, {}, k) * real_T1).sum(0),
               first = (chosen_mask(scores, {}, 1) * real_T1).sum(0);
  using moe::Convention;
  switch (convention) {
    case Convention::kMegatron:
    case Convention::kDeepseek:
      return E * (all / (k * tokens) * affinity).sum();
    case Convention::kDeepspeed:
      return k <= 2 ? E * (first / tokens * affinity).sum()
                    : (all / tokens * affinity).mean() * (static_cast<double>(E * E) / static_cast<double>(k));
    case Convention::kHuggingface:
      return E * (all / tokens * affinity).sum();
    default:
      return E * (first / tokens * affinity).sum();
  }
}

// P-penalty of HMoE (methods.md 1.22): the huggingface convention with each expert's count times its width by the mean.
inline Tensor reference_penalty(const Tensor& logits_TE, const moe::RouterConfig& router,
                                const std::vector<int64_t>& widths, int64_t k, const Tensor& real_T1) {
  const Tensor widths_E = at::tensor(widths, at::kDouble), tokens = real_T1.sum();
  const Tensor scores = reference_scores(logits_TE, router);
  const Tensor affinity = ((scores / scores.sum(1, true)) * real_T1).sum(0) / tokens;
  const Tensor mass = (chosen_mask(scores, {}, k) * real_T1).sum(0) / tokens * (widths_E / widths_E.mean());
  return logits_TE.size(1) * (mass * affinity).sum();
}

inline Tensor reference_z_loss(const Tensor& logits_TE, const Tensor& real_T1) {
  const Tensor lse = at::logsumexp(logits_TE, 1, true);
  return (lse * lse * real_T1).sum() / real_T1.sum();
}

}  // namespace conclave::testing
