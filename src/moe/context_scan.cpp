// SPDX-License-Identifier: Apache-2.0
#include "moe/context_scan.h"

#include <ATen/ops/empty_like.h>

#include <cmath>

namespace conclave::moe {
namespace {

// Whether token t goes on with the document of the token before it.
bool continues(const Batch& batch, int64_t t) {
  return t % batch.length != 0 && batch.segment_ids[t] == batch.segment_ids[t - 1];
}

}  // namespace

template <typename T>
std::vector<T> ContextScan::decays() const {
  std::vector<T> decays;
  for (const T rate : elements<T>(parameters_.value(rates_))) decays.push_back(1 / (1 + std::exp(-rate)));
  return decays;
}

Tensor ContextScan::forward(const Tensor& x_TD, const Batch& batch) const {
  const int64_t D = x_TD.size(1);
  Tensor context = at::empty_like(x_TD);
  by_dtype(x_TD, [&](auto zero) {
    using T = decltype(zero);
    const auto decay = decays<T>();
    const auto x = elements<T>(x_TD), c = elements<T>(context);
    for (int64_t t = 0; t < x_TD.size(0); ++t) {
      const bool begins = !continues(batch, t);
      for (int64_t d = 0; d < D; ++d) {
        const T before = begins ? T{0} : c[(t - 1) * D + d];
        c[t * D + d] = decay[d] * before + (1 - decay[d]) * x[t * D + d];
      }
    }
  });
  return context;
}

Tensor ContextScan::through_time(const Tensor& dc_TD, const Batch& batch) const {
  const int64_t D = dc_TD.size(1), tokens = dc_TD.size(0);
  Tensor all = dc_TD.clone();
  by_dtype(all, [&](auto zero) {
    using T = decltype(zero);
    const auto decay = decays<T>();
    const auto dc = elements<T>(all);
    for (int64_t t = tokens - 2; t >= 0; --t) {
      if (!continues(batch, t + 1)) continue;
      for (int64_t d = 0; d < D; ++d) dc[t * D + d] += decay[d] * dc[(t + 1) * D + d];
    }
  });
  return all;
}

Tensor ContextScan::backward_input(const Tensor& dc_TD) const {
  Tensor dx = at::empty_like(dc_TD);
  by_dtype(dx, [&](auto zero) {
    using T = decltype(zero);
    const auto decay = decays<T>();
    const auto dc = elements<T>(dc_TD), out = elements<T>(dx);
    for (size_t i = 0; i < out.size(); ++i) out[i] = (1 - decay[i % decay.size()]) * dc[i];
  });
  return dx;
}

void ContextScan::backward_weight(const Steps& steps, const Batch& batch, nn::Gradients& gradients) const {
  const int64_t D = steps.x_OD.size(1);
  const Tensor gradient = gradients.view(parameters_[rates_]);
  by_dtype(gradient, [&](auto zero) {
    using T = decltype(zero);
    const auto decay = decays<T>();
    const auto x = elements<T>(steps.x_OD), c = elements<T>(steps.all_c_TD), dc = elements<T>(steps.all_dc_TD);
    std::vector<double> sum(D, 0.0);
    for (int64_t t = steps.first; t < steps.first + steps.x_OD.size(0); ++t) {
      const bool begins = !continues(batch, t);
      for (int64_t d = 0; d < D; ++d) {
        const double before = begins ? 0.0 : c[(t - 1) * D + d];
        sum[d] += dc[t * D + d] * (before - x[(t - steps.first) * D + d]);
      }
    }
    const auto out = elements<T>(gradient);
    for (int64_t d = 0; d < D; ++d) out[d] += static_cast<T>(sum[d] * decay[d] * (1 - decay[d]));
  });
}

}  // namespace conclave::moe
