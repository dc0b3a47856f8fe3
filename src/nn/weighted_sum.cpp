// SPDX-License-Identifier: Apache-2.0
#include "nn/weighted_sum.h"

#include <ATen/TensorOperators.h>

#include "kernels/rows.h"

namespace conclave::nn {

std::vector<Slot> WeightedSum::inputs() const {
  std::vector<Slot> slots;
  for (const Term& term : terms_) slots.push_back(term.slot);
  return slots;
}

void WeightedSum::forward(Frame& frame) {
  Tensor sum = frame.value(terms_[0].slot) * terms_[0].factor;
  for (size_t i = 1; i < terms_.size(); ++i) kernels::add(sum, frame.value(terms_[i].slot) * terms_[i].factor);
  frame.value(output_) = sum;
}

void WeightedSum::backward_input(Frame& frame) {
  for (const Term& term : terms_) frame.add_grad(term.slot, frame.grad(output_) * term.factor);
}

}  // namespace conclave::nn
