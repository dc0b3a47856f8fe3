// SPDX-License-Identifier: Apache-2.0
#include "nn/embedding.h"

#include <ATen/ops/empty.h>

#include "kernels/embedding.h"

namespace conclave::nn {

Embedding::Embedding(StageSite site, const Parameters& parameters, ParameterId weight_VD, Slot output)
    : Stage(std::move(site)), parameters_(parameters), weight_(weight_VD), output_(output) {}

std::vector<int32_t> Embedding::rows(const Batch& batch) const {
  const LogicalTensor& tensor = parameters_[weight_].parts[0];
  if (tensor.whole()) return batch.tokens;
  std::vector<int32_t> rows;
  for (const int32_t token : batch.tokens) {
    check(token < tensor.shape[0], "a token is in the vocabulary");
    const int64_t row = token - tensor.slice.begin;
    rows.push_back(row >= 0 && row < tensor.slice.count ? static_cast<int32_t>(row) : -1);
  }
  return rows;
}

void Embedding::forward(Frame& frame) {
  const Tensor weight = parameters_.value(weight_);
  Tensor out = at::empty({frame.batch().tokens_count(), weight.size(1)}, weight.options());
  if (frame.device() != nullptr) {
    kernels::embedding(weight, frame.device()->batch.tokens_T, out);
  } else {
    kernels::embedding(weight, rows(frame.batch()), out);
  }
  frame.value(output_) = out;
}

void Embedding::backward_weight(Frame& frame) {
  Tensor gradient = frame.gradients().view(parameters_[weight_]);
  if (frame.device() != nullptr) {
    kernels::embedding_backward(frame.grad(output_), frame.device()->batch.tokens_T, gradient);
  } else {
    kernels::embedding_backward(frame.grad(output_), rows(frame.batch()), gradient);
  }
}

}  // namespace conclave::nn
