// SPDX-License-Identifier: Apache-2.0
// The output head and its cross entropy in one stage, in chunks of a fixed number of tokens, so that [tokens,
// vocabulary] never exists in full. The gradient of a *sum* over counted targets is known at once, so forward also
// computes it: one pass over the logits instead of two. V vocabulary.
#pragma once

#include "nn/stage.h"

namespace conclave::nn {

class Loss : public Stage {
 public:
  // Tokens whose logits exist at a time. Fixed: part of the bitwise promise.
  static constexpr int64_t kChunk = 256;

  Loss(StageSite site, const Parameters& parameters, ParameterId head_VD, Slot input);
  std::vector<Slot> inputs() const override { return {input_}; }
  std::vector<Slot> outputs() const override { return {}; }
  // Sets frame.loss_sum.
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;
  void backward_weight(Frame&) override {}

 private:
  const Parameters& parameters_;
  ParameterId head_;
  Slot input_;
};

}  // namespace conclave::nn
