// SPDX-License-Identifier: Apache-2.0
#include "moe/home_stage.h"

#include <ATen/ops/empty_like.h>

#include "kernels/row_terms.h"

namespace conclave::moe {
namespace {

Tensor of_x(const Tensor& home_TV) { return home_TV.select(1, 0).contiguous(); }

}  // namespace

HomeStage::HomeStage(nn::StageSite site, const nn::Parameters& parameters, HomeVectors vectors, HomeSlots slots)
    : Stage(std::move(site)), parameters_(parameters), vectors_(std::move(vectors)), slots_(slots) {}

Tensor HomeStage::vectors(const Tensor& rows) const {
  if (vectors_.learned) return parameters_.value(*vectors_.learned);
  return vectors_.state != nullptr ? vectors_.state->get(vectors_.name).to(rows.scalar_type()) : Tensor();
}

std::vector<nn::ParameterId> HomeStage::parameters() const {
  if (!vectors_.learned) return {};
  return {*vectors_.learned};
}

void HomeStage::forward(nn::Frame& frame) {
  const Tensor& home = frame.value(slots_.home);
  Tensor y = frame.value(slots_.routed).clone();
  kernels::add_scaled_rows(frame.value(slots_.input), of_x(home), y);
  if (const Tensor vectors = this->vectors(y); vectors.defined()) {
    by_dtype(y, [&](auto zero) {
      using T = decltype(zero);
      const auto h = elements<T>(home), v = elements<T>(vectors), out = elements<T>(y);
      const int64_t D = y.size(1), n = vectors.size(0);
      for (int64_t t = 0; t < y.size(0); ++t)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t d = 0; d < D; ++d) out[t * D + d] += h[t * (n + 1) + 1 + i] * v[i * D + d];
    });
  }
  frame.value(slots_.output) = y;
}

void HomeStage::backward_input(nn::Frame& frame) {
  const Tensor& dy = frame.grad(slots_.output);
  const Tensor &x = frame.value(slots_.input), &home = frame.value(slots_.home);
  Tensor dhome = at::empty_like(home);
  dhome.select(1, 0).copy_(kernels::row_products(dy, x));
  if (const Tensor vectors = this->vectors(dy); vectors.defined()) {
    by_dtype(dy, [&](auto zero) {
      using T = decltype(zero);
      const auto g = elements<T>(dy), v = elements<T>(vectors), out = elements<T>(dhome);
      const int64_t D = dy.size(1), n = vectors.size(0);
      for (int64_t t = 0; t < dy.size(0); ++t) {
        for (int64_t i = 0; i < n; ++i) {
          T sum = 0;
          for (int64_t d = 0; d < D; ++d) sum += g[t * D + d] * v[i * D + d];
          out[t * (n + 1) + 1 + i] = sum;
        }
      }
    });
  }
  frame.add_grad(slots_.home, dhome);
  frame.add_grad(slots_.input, kernels::scaled_rows(dy, of_x(home)));
  frame.add_grad(slots_.routed, dy);
}

void HomeStage::backward_weight(nn::Frame& frame) {
  if (vectors_.learned) {
    const Tensor& dy = frame.grad(slots_.output);
    const Tensor& home = frame.value(slots_.home);
    const Tensor gradient = frame.gradients().view(parameters_[*vectors_.learned]);
    by_dtype(dy, [&](auto zero) {
      using T = decltype(zero);
      const auto g = elements<T>(dy), h = elements<T>(home), out = elements<T>(gradient);
      const int64_t D = dy.size(1), n = gradient.size(0);
      std::vector<double> sum(n * D, 0.0);  // over tokens in their order
      for (int64_t t = 0; t < dy.size(0); ++t)
        for (int64_t i = 0; i < n; ++i)
          for (int64_t d = 0; d < D; ++d) sum[i * D + d] += static_cast<double>(h[t * (n + 1) + 1 + i]) * g[t * D + d];
      for (int64_t i = 0; i < n * D; ++i) out[i] += static_cast<T>(sum[i]);
    });
  }
  frame.forget(index());
}

}  // namespace conclave::moe
