// SPDX-License-Identifier: Apache-2.0
#include "nn/residual.h"

#include "kernels/rows.h"

namespace conclave::nn {

Residual::Residual(StageSite site, std::vector<Slot> inputs, Slot output)
    : Stage(std::move(site)), inputs_(std::move(inputs)), output_(output) {}

void Residual::forward(Frame& frame) {
  Tensor sum = frame.value(inputs_[0]).clone();
  for (size_t i = 1; i < inputs_.size(); ++i) kernels::add(sum, frame.value(inputs_[i]));
  frame.value(output_) = sum;
}

void Residual::backward_input(Frame& frame) {
  const Tensor& dy = frame.grad(output_);
  for (const Slot input : inputs_) {
    // Gradients are added to in place, so two branches must not share one; the first may take it over.
    const bool own = input == inputs_[0] || frame.grad(input).defined();
    frame.add_grad(input, own ? dy : dy.clone());
  }
}

}  // namespace conclave::nn
