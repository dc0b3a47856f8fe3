// SPDX-License-Identifier: Apache-2.0
#include "moe/soft_merge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/row_terms.h"
#include "kernels/rows.h"
#include "kernels/softmax.h"
#include "kernels/swiglu.h"
#include "nn/linear.h"

namespace conclave::moe {
namespace {

Tensor rows_of(const Tensor& rows, const MergedPiece& piece) {
  return rows.narrow(0, piece.begin, piece.end - piece.begin);
}

}  // namespace

SoftMerge::SoftMerge(nn::StageSite site, const nn::Parameters& parameters, SoftMergeConfig config,
                     SoftMergeWeights weights, nn::Wire wire)
    : Stage(std::move(site)), parameters_(parameters), config_(config), weights_(weights), wire_(wire) {}

std::vector<nn::ParameterId> SoftMerge::parameters() const {
  return {weights_.router_ED, weights_.gate_up_E2FD, weights_.down_EDF};
}

Tensor SoftMerge::experts(nn::ParameterId weights) const {
  return parameters_.value(weights).view({config_.experts, -1});
}

Tensor SoftMerge::merged(const Tensor& q_ME, nn::ParameterId weights) const {
  const Tensor of_experts = experts(weights), whole = parameters_.value(weights);
  Tensor merged = at::zeros({q_ME.size(0), of_experts.size(1)}, of_experts.options());
  kernels::add_combinations(q_ME, of_experts, merged);
  return merged.view({q_ME.size(0), whole.size(0) / config_.experts, whole.size(1)});
}

void SoftMerge::decide(const Tensor& x_TD, Saved& saved) const {
  const auto& sources = saved.merges.sources;
  saved.means_MD = at::zeros({std::ssize(sources), x_TD.size(1)}, x_TD.options());
  for (int64_t m = 0; m < std::ssize(sources); ++m) {
    const int64_t n = sources[m].tokens();
    if (n == 0) continue;
    Tensor mean = saved.means_MD.narrow(0, m, 1);
    kernels::add_weighted_rows(at::full({n, 1}, 1.0 / static_cast<double>(n), x_TD.options()),
                               x_TD.narrow(0, sources[m].begin, n), mean);
  }
  // Without a source the logits are all zero, and so equal.
  const Tensor logits = nn::linear_forward(saved.means_MD, parameters_.value(weights_.router_ED));
  Tensor lse = at::empty({logits.size(0)}, logits.options());
  saved.q_ME = at::empty_like(logits);
  kernels::softmax_rows(logits, saved.q_ME, lse);
}

void SoftMerge::forward(nn::Frame& frame) {
  const Tensor& x = frame.value(wire_.input);
  auto& saved = frame.saved<Saved>(index());
  saved.merges = segment_merges(frame.batch(), config_.segment, config_.own_first && frame.training());
  decide(x, saved);
  saved.gate_up_M2FD = merged(saved.q_ME, weights_.gate_up_E2FD);
  saved.down_MDF = merged(saved.q_ME, weights_.down_EDF);
  const int64_t F = saved.down_MDF.size(2);
  saved.h_T2F = at::empty({x.size(0), 2 * F}, x.options());
  for (const auto& piece : saved.merges.pieces) {
    rows_of(saved.h_T2F, piece).copy_(nn::linear_forward(rows_of(x, piece), saved.gate_up_M2FD.select(0, piece.merge)));
    frame.poll();
  }
  Tensor act = at::empty({x.size(0), F}, x.options()), y = at::empty_like(x);
  kernels::swiglu(saved.h_T2F, Tensor(), act);
  for (const auto& piece : saved.merges.pieces) {
    rows_of(y, piece).copy_(nn::linear_forward(rows_of(act, piece), saved.down_MDF.select(0, piece.merge)));
    frame.poll();
  }
  frame.value(wire_.output) = y;
  if (!frame.training()) frame.forget(index());
}

Tensor SoftMerge::through_experts(nn::Frame& frame, Saved& saved) const {
  const Tensor &x = frame.value(wire_.input), &dy = frame.grad(wire_.output);
  const auto& pieces = saved.merges.pieces;
  Tensor dact = at::empty({x.size(0), saved.down_MDF.size(2)}, x.options()), dx = at::empty_like(x);
  for (const auto& piece : pieces)
    rows_of(dact, piece).copy_(nn::linear_backward_input(rows_of(dy, piece), saved.down_MDF.select(0, piece.merge)));
  frame.poll();
  kernels::SwigluGradients gradients{at::empty_like(saved.h_T2F), {}, at::empty_like(dact)};
  kernels::swiglu_backward(dact, saved.h_T2F, Tensor(), gradients);
  saved.dgate_up_M2FD = at::zeros_like(saved.gate_up_M2FD);
  saved.ddown_MDF = at::zeros_like(saved.down_MDF);
  for (const auto& piece : pieces) {
    const Tensor dh = rows_of(gradients.dh_N2F, piece);
    rows_of(dx, piece).copy_(nn::linear_backward_input(dh, saved.gate_up_M2FD.select(0, piece.merge)));
    nn::linear_backward_weight(dh, rows_of(x, piece), false, saved.dgate_up_M2FD.select(0, piece.merge));
    nn::linear_backward_weight(rows_of(dy, piece), rows_of(gradients.out_NF, piece), false,
                               saved.ddown_MDF.select(0, piece.merge));
    frame.poll();
  }
  return dx;
}

void SoftMerge::through_decisions(Saved& saved, Tensor& dx_TD) const {
  const int64_t merges = std::ssize(saved.merges.sources);
  Tensor dq = kernels::vector_products(saved.dgate_up_M2FD.view({merges, -1}), experts(weights_.gate_up_E2FD));
  kernels::add(dq, kernels::vector_products(saved.ddown_MDF.view({merges, -1}), experts(weights_.down_EDF)));
  saved.dlogits_ME = saved.q_ME * (dq - (saved.q_ME * dq).sum(1, true));
  for (int64_t m = 0; m < merges; ++m)
    if (!saved.merges.sources[m].learns) saved.dlogits_ME.select(0, m).zero_();
  const Tensor dmeans = nn::linear_backward_input(saved.dlogits_ME, parameters_.value(weights_.router_ED));
  for (int64_t m = 0; m < merges; ++m) {
    const MergeSource& source = saved.merges.sources[m];
    if (source.learns)
      dx_TD.narrow(0, source.begin, source.tokens()).add_(dmeans.select(0, m) / static_cast<double>(source.tokens()));
  }
}

void SoftMerge::backward_input(nn::Frame& frame) {
  auto& saved = frame.saved<Saved>(index());
  Tensor dx = through_experts(frame, saved);
  through_decisions(saved, dx);
  frame.add_grad(wire_.input, dx);
}

void SoftMerge::backward_weight(nn::Frame& frame) {
  const auto& saved = frame.saved<Saved>(index());
  const int64_t merges = std::ssize(saved.merges.sources);
  const auto add = [&](const Tensor& w_ME, const Tensor& rows, nn::ParameterId id) {
    Tensor sums = frame.gradients().view(parameters_[id]).view({config_.experts, -1});
    kernels::add_weighted_rows(w_ME, rows.view({merges, -1}), sums);
  };
  add(saved.q_ME, saved.dgate_up_M2FD, weights_.gate_up_E2FD);
  add(saved.q_ME, saved.ddown_MDF, weights_.down_EDF);
  add(saved.dlogits_ME, saved.means_MD, weights_.router_ED);
  frame.forget(index());
}

}  // namespace conclave::moe
