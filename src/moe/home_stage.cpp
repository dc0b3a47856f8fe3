// SPDX-License-Identifier: Apache-2.0
#include "moe/home_stage.h"

#include <ATen/ops/empty_like.h>

#include "kernels/row_terms.h"

namespace conclave::moe {
namespace {

Tensor of_x(const Tensor& home_TV) { return home_TV.select(1, 0).contiguous(); }
Tensor of_vectors(const Tensor& home_TV) { return home_TV.narrow(1, 1, home_TV.size(1) - 1).contiguous(); }

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
  if (const Tensor vectors = this->vectors(y); vectors.defined())
    kernels::add_combinations(of_vectors(home), vectors, y);
  frame.value(slots_.output) = y;
}

void HomeStage::backward_input(nn::Frame& frame) {
  const Tensor& dy = frame.grad(slots_.output);
  const Tensor &x = frame.value(slots_.input), &home = frame.value(slots_.home);
  Tensor dhome = at::empty_like(home);
  dhome.select(1, 0).copy_(kernels::row_products(dy, x));
  if (const Tensor vectors = this->vectors(dy); vectors.defined())
    dhome.narrow(1, 1, vectors.size(0)).copy_(kernels::vector_products(dy, vectors));
  frame.add_grad(slots_.home, dhome);
  frame.add_grad(slots_.input, kernels::scaled_rows(dy, of_x(home)));
  frame.add_grad(slots_.routed, dy);
}

void HomeStage::backward_weight(nn::Frame& frame) {
  if (vectors_.learned) {
    Tensor gradient = frame.gradients().view(parameters_[*vectors_.learned]);
    kernels::add_weighted_rows(of_vectors(frame.value(slots_.home)), frame.grad(slots_.output), gradient);
  }
  frame.forget(index());
}

}  // namespace conclave::moe
