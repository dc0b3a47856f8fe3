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

// The rows of segment i of a tensor that has a row for each.
auto rows_of(const Segments& segments, const Tensor& x) {
  return [&](size_t i) { return x.narrow(0, segments.all[i].begin, segments.all[i].rows); };
}

// The same of hidden activations.
auto rows_of(const HiddenRows& rows, const Tensor& hidden) {
  return [&](size_t i) { return rows.segment(i, hidden); };
}

}  // namespace

Experts::Experts(const nn::Parameters& parameters, std::vector<ExpertWeights> local_experts,
                 std::optional<ExpertDropout> dropout)
    : parameters_(parameters), experts_(std::move(local_experts)), dropout_(std::move(dropout)) {
  // Of their declaration: values may not be there yet.
  for (const auto& expert : experts_) widths_.push_back(parameters[expert.down_DF].shape[1]);
}

void Experts::drop(const Segments& segments, const HiddenRows& rows, Tensor& act) const {
  if (!dropout_ || segments.tokens_R.empty()) return;
  for (size_t i = 0; i < segments.all.size(); ++i) {
    const Segment& segment = segments.all[i];
    const Segment alone{segment.expert, segment.source, 0, segment.rows};
    Tensor act_RF = rows.segment(i, act);
    dropout_->apply({&alone, 1}, segments.tokens_R.subspan(segment.begin, segment.rows), segments.step, act_RF);
  }
}

std::vector<nn::ParameterId> Experts::parameters() const {
  std::vector<nn::ParameterId> ids;
  for (const auto& expert : experts_) {
    ids.push_back(expert.gate_up_2FD);
    ids.push_back(expert.down_DF);
  }
  return ids;
}

template <typename X, typename Y>
void Experts::product(const Segments& segments, const X& x, nn::ParameterId ExpertWeights::*member, bool transposed,
                      const Y& y) const {
  for (size_t i = 0; i < segments.all.size(); ++i) {
    const Tensor weight = parameters_.value(experts_[segments.all[i].expert].*member);
    Tensor out = y(i);
    at::mm_out(out, x(i), transposed ? weight.t() : weight);
    segments.link.poll();
  }
}

void Experts::pre_activations(const Segments& segments, const Rows& in, Saved& saved) const {
  const HiddenRows hidden = hidden_rows(segments);
  saved.h = hidden.empty(2, in.rows.options());
  product(segments, rows_of(segments, in.rows), &ExpertWeights::gate_up_2FD, true, rows_of(hidden, saved.h));
}

void Experts::forward(const Segments& segments, const Rows& in, Saved& saved, Tensor& out_RD) const {
  pre_activations(segments, in, saved);
  const HiddenRows hidden = hidden_rows(segments);
  Tensor act = hidden.empty(1, in.rows.options());
  for (const auto& run : hidden.runs()) {
    Tensor act_RF = hidden.run(run, act);
    kernels::swiglu(hidden.run(run, saved.h), in.scalars.narrow(0, run.begin, run.rows), act_RF);
  }
  drop(segments, hidden, act);
  product(segments, rows_of(hidden, act), &ExpertWeights::down_DF, true, rows_of(segments, out_RD));
}

Tensor Experts::backward_input(const Segments& segments, const Rows& in, const Tensor& dout_RD, Saved& saved,
                               Tensor& din_RD) const {
  const HiddenRows hidden = hidden_rows(segments);
  saved.dout_RD = dout_RD;
  Tensor dact = hidden.empty(1, dout_RD.options());
  product(segments, rows_of(segments, dout_RD), &ExpertWeights::down_DF, false, rows_of(hidden, dact));
  drop(segments, hidden, dact);
  saved.dh = at::empty_like(saved.h);
  saved.act = at::empty_like(dact);
  Tensor dgates = at::empty_like(in.scalars);
  for (const auto& run : hidden.runs()) {
    const auto gates = [&](const Tensor& of_all) { return of_all.narrow(0, run.begin, run.rows); };
    kernels::SwigluGradients inner{hidden.run(run, saved.dh), gates(dgates), hidden.run(run, saved.act)};
    kernels::swiglu_backward(hidden.run(run, dact), hidden.run(run, saved.h), gates(in.scalars), inner);
  }
  drop(segments, hidden, saved.act);
  product(segments, rows_of(hidden, saved.dh), &ExpertWeights::gate_up_2FD, false, rows_of(segments, din_RD));
  return dgates;
}

void Experts::outputs(const Segments& segments, const Saved& saved, Tensor& out_RD) const {
  const HiddenRows hidden = hidden_rows(segments);
  Tensor act = hidden.empty(1, out_RD.options());
  for (const auto& run : hidden.runs()) {
    Tensor act_RF = hidden.run(run, act);
    kernels::swiglu(hidden.run(run, saved.h), {}, act_RF);
  }
  product(segments, rows_of(hidden, act), &ExpertWeights::down_DF, true, rows_of(segments, out_RD));
}

void Experts::add_outputs(const Segments& segments, const Saved& saved, OutputSums& sums) const {
  const int64_t D = parameters_.value(experts_[0].down_DF).size(0);
  const HiddenRows hidden = hidden_rows(segments);
  sums.resize(std::ssize(experts_) * D, 0);
  for (size_t i = 0; i < segments.all.size(); ++i) {
    const Segment& segment = segments.all[i];
    const int64_t F = widths_[segment.expert];
    // The sum of W a over rows is W times the sum of a.
    Tensor act = at::empty({segment.rows, F}, saved.h.options());
    kernels::swiglu(hidden.segment(i, saved.h), {}, act);
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
  const HiddenRows hidden = hidden_rows(segments);
  for (size_t i = 0; i < segments.all.size(); ++i) {
    const Segment& segment = segments.all[i];
    const bool apart = gradients.experts.size() > 1;
    const bool fresh = apart ? gradients.fresh : !written[segment.expert];
    written[segment.expert] = true;
    const auto rows = [&](const Tensor& x) { return x.narrow(0, segment.begin, segment.rows); };
    const auto& weights = experts_[segment.expert];
    nn::linear_backward_weight(rows(saved.dout_RD), hidden.segment(i, saved.act), fresh,
                               gradients.view(parameters_[weights.down_DF], segment.source));
    nn::linear_backward_weight(hidden.segment(i, saved.dh), rows(in.rows), fresh,
                               gradients.view(parameters_[weights.gate_up_2FD], segment.source));
    segments.link.poll();
  }
}

}  // namespace conclave::moe
