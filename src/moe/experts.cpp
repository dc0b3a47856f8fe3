// SPDX-License-Identifier: Apache-2.0
#include "moe/experts.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include "kernels/swiglu.h"
#include "nn/linear.h"

namespace conclave::moe {

namespace {

// Over the rows of a segment, in double and in order.
std::vector<double> column_sums(const Tensor& rows_RF) {
  std::vector<double> sums(rows_RF.size(1), 0.0);
  by_dtype(rows_RF, [&](auto zero) {
    const auto rows = elements<decltype(zero)>(rows_RF);
    for (size_t i = 0; i < rows.size(); ++i) sums[i % sums.size()] += rows[i];
  });
  return sums;
}

// Σ_f w_f a_f in a fixed order of eight sums.
template <typename T>
double product_of(std::span<const T> w, std::span<const double> a) {
  constexpr size_t kLanes = 8;
  double lanes[kLanes] = {};
  size_t f = 0;
  for (; f + kLanes <= a.size(); f += kLanes)
    for (size_t i = 0; i < kLanes; ++i) lanes[i] += static_cast<double>(w[f + i]) * a[f + i];
  double sum = 0;
  for (; f < a.size(); ++f) sum += static_cast<double>(w[f]) * a[f];
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

Experts::Experts(const nn::Parameters& parameters, std::vector<ExpertWeights> local_experts,
                 std::optional<ExpertDropout> dropout)
    : parameters_(parameters), experts_(std::move(local_experts)), dropout_(std::move(dropout)) {}

void Experts::drop(const Segments& segments, Tensor& act_RF) const {
  if (dropout_ && !segments.tokens_R.empty()) dropout_->apply(segments.all, segments.tokens_R, segments.step, act_RF);
}

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
  drop(segments, act);
  product(segments, act, &ExpertWeights::down_DF, true, out_RD);
}

Tensor Experts::backward_input(const Segments& segments, const Rows& in, const Tensor& dout_RD, Saved& saved,
                               Tensor& din_RD) const {
  const int64_t R = dout_RD.size(0), F = saved.h_R2F.size(1) / 2;
  saved.dout_RD = dout_RD;
  Tensor dact = at::empty({R, F}, dout_RD.options());
  product(segments, dout_RD, &ExpertWeights::down_DF, false, dact);
  drop(segments, dact);
  kernels::SwigluGradients inner{at::empty_like(saved.h_R2F), at::empty_like(in.scalars), at::empty_like(dact)};
  kernels::swiglu_backward(dact, saved.h_R2F, in.scalars, inner);
  saved.dh_R2F = inner.dh_N2F;
  saved.act_RF = inner.out_NF;
  drop(segments, saved.act_RF);
  product(segments, saved.dh_R2F, &ExpertWeights::gate_up_2FD, false, din_RD);
  return inner.dscale_N;
}

void Experts::outputs(const Segments& segments, const Saved& saved, Tensor& out_RD) const {
  Tensor act = at::empty({saved.h_R2F.size(0), saved.h_R2F.size(1) / 2}, saved.h_R2F.options());
  kernels::swiglu(saved.h_R2F, {}, act);
  product(segments, act, &ExpertWeights::down_DF, true, out_RD);
}

void Experts::add_outputs(const Segments& segments, const Saved& saved, OutputSums& sums) const {
  const int64_t D = parameters_.value(experts_[0].down_DF).size(0), F = saved.h_R2F.size(1) / 2;
  sums.resize(std::ssize(experts_) * D, 0);
  for (const auto& segment : segments.all) {
    // The sum of W a over rows is W times the sum of a.
    Tensor act = at::empty({segment.rows, F}, saved.h_R2F.options());
    kernels::swiglu(saved.h_R2F.narrow(0, segment.begin, segment.rows), {}, act);
    const std::vector<double> act_F = column_sums(act);
    const Tensor down = parameters_.value(experts_[segment.expert].down_DF);
    by_dtype(down, [&](auto zero) {
      const std::span<const decltype(zero)> weights = elements<decltype(zero)>(down);
      for (int64_t d = 0; d < D; ++d)
        sums[segment.expert * D + d] +=
            fixed_point(product_of(weights.subspan(d * F, F), std::span<const double>(act_F)));
    });
    segments.link.poll();
  }
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
