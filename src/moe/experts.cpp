// SPDX-License-Identifier: Apache-2.0
#include "moe/experts.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include "kernels/swiglu.h"
#include "nn/linear.h"

namespace conclave::moe {

Experts::Experts(const nn::Parameters& parameters, std::vector<ExpertWeights> local_experts)
    : parameters_(parameters), experts_(std::move(local_experts)) {}

std::vector<nn::ParameterId> Experts::parameters() const {
  std::vector<nn::ParameterId> ids;
  for (const auto& expert : experts_) {
    ids.push_back(expert.gate_up_2FD);
    ids.push_back(expert.down_DF);
  }
  return ids;
}

void Experts::product(const Segments& segments, const Tensor& x, nn::ParameterId ExpertWeights::*member,
                      bool transposed, Tensor& y) const {
  for (const auto& segment : segments.all) {
    const Tensor weight = parameters_.value(experts_[segment.expert].*member);
    Tensor out = y.narrow(0, segment.begin, segment.rows);
    at::mm_out(out, x.narrow(0, segment.begin, segment.rows), transposed ? weight.t() : weight);
    segments.link.poll();
  }
}

void Experts::pre_activations(const Segments& segments, const Rows& in, Saved& saved) const {
  const int64_t width = parameters_.value(experts_[0].gate_up_2FD).size(0);
  saved.h_R2F = at::empty({in.rows.size(0), width}, in.rows.options());
  product(segments, in.rows, &ExpertWeights::gate_up_2FD, true, saved.h_R2F);
}

void Experts::forward(const Segments& segments, const Rows& in, Saved& saved, Tensor& out_RD) const {
  pre_activations(segments, in, saved);
  Tensor act = at::empty({in.rows.size(0), saved.h_R2F.size(1) / 2}, in.rows.options());
  kernels::swiglu(saved.h_R2F, in.scalars, act);
  product(segments, act, &ExpertWeights::down_DF, true, out_RD);
}

Tensor Experts::backward_input(const Segments& segments, const Rows& in, const Tensor& dout_RD, Saved& saved,
                               Tensor& din_RD) const {
  const int64_t R = dout_RD.size(0), F = saved.h_R2F.size(1) / 2;
  saved.dout_RD = dout_RD;
  Tensor dact = at::empty({R, F}, dout_RD.options());
  product(segments, dout_RD, &ExpertWeights::down_DF, false, dact);
  kernels::SwigluGradients inner{at::empty_like(saved.h_R2F), at::empty_like(in.scalars), at::empty_like(dact)};
  kernels::swiglu_backward(dact, saved.h_R2F, in.scalars, inner);
  saved.dh_R2F = inner.dh_N2F;
  saved.act_RF = inner.out_NF;
  product(segments, saved.dh_R2F, &ExpertWeights::gate_up_2FD, false, din_RD);
  return inner.dscale_N;
}

void Experts::backward_weight(const Segments& segments, const Rows& in, const Saved& saved,
                              nn::Gradients& gradients) const {
  // With one buffer for all sources an expert's second segment must add to the first.
  std::vector<bool> written(experts_.size(), !gradients.fresh);
  for (const auto& segment : segments.all) {
    const bool apart = gradients.experts.size() > 1;
    const bool fresh = apart ? gradients.fresh : !written[segment.expert];
    written[segment.expert] = true;
    const auto rows = [&](const Tensor& x) { return x.narrow(0, segment.begin, segment.rows); };
    const auto& weights = experts_[segment.expert];
    nn::linear_backward_weight(rows(saved.dout_RD), rows(saved.act_RF), fresh,
                               gradients.view(parameters_[weights.down_DF], segment.source));
    nn::linear_backward_weight(rows(saved.dh_R2F), rows(in.rows), fresh,
                               gradients.view(parameters_[weights.gate_up_2FD], segment.source));
    segments.link.poll();
  }
}

}  // namespace conclave::moe
