// SPDX-License-Identifier: Apache-2.0
// The context of a token (methods.md 7.1): c_t = λ ⊙ c_{t−1} + (1 − λ) ⊙ x_t, λ = sigmoid(θ) learned for each
// dimension, zero before the first token of a document. Causal: class C1. Rows are all tokens of a micro-batch, in
// order, also where tensor-parallel ranks share them: a document may cross from one rank's tokens to the next one's.
#pragma once

#include "core/batch.h"
#include "nn/parameters.h"

namespace conclave::moe {

class ContextScan {
 public:
  // `rates` is θ [D].
  ContextScan(const nn::Parameters& parameters, nn::ParameterId rates) : parameters_(parameters), rates_(rates) {}
  nn::ParameterId rates() const { return rates_; }

  Tensor forward(const Tensor& x_TD, const Batch& batch) const;
  // From the gradient that each context has of its own to the one that it has with all later contexts.
  Tensor through_time(const Tensor& dc_TD, const Batch& batch) const;
  // From that the gradient of x.
  Tensor backward_input(const Tensor& dc_TD) const;
  struct Steps {
    Tensor x_OD;        // of O consecutive tokens
    Tensor all_c_TD;    // contexts of the micro-batch
    Tensor all_dc_TD;   // from through_time
    int64_t first = 0;  // of those tokens
  };
  // Adds what those tokens give to the gradient of θ, in their order.
  void backward_weight(const Steps& steps, const Batch& batch, nn::Gradients& gradients) const;

 private:
  template <typename T>
  std::vector<T> decays() const;

  const nn::Parameters& parameters_;
  nn::ParameterId rates_;
};

}  // namespace conclave::moe
