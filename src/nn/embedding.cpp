// SPDX-License-Identifier: Apache-2.0
#include "nn/embedding.h"

#include <ATen/ops/empty.h>

#include "kernels/embedding.h"

namespace conclave::nn {

Embedding::Embedding(StageSite site, const Parameters& parameters, ParameterId weight_VD, Slot output)
    : Stage(std::move(site)), parameters_(parameters), weight_(weight_VD), output_(output) {}

void Embedding::forward(Frame& frame) {
  const Tensor weight = parameters_.value(weight_);
  Tensor out = at::empty({frame.batch().tokens_count(), weight.size(1)}, weight.options());
  kernels::embedding(weight, frame.batch().tokens, out);
  frame.value(output_) = out;
}

void Embedding::backward_weight(Frame& frame) {
  Tensor gradient = frame.gradients().view(parameters_[weight_]);
  kernels::embedding_backward(frame.grad(output_), frame.batch().tokens, gradient);
}

}  // namespace conclave::nn
