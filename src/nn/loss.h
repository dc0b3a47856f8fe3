// SPDX-License-Identifier: Apache-2.0
// The output head and its cross entropy in one stage, in chunks of a fixed number of tokens, so that [tokens,
// vocabulary] never exists in full. The gradient of a *sum* over counted targets is known at once, so forward also
// computes it: one pass over the logits instead of two. V vocabulary. Under tensor parallelism each rank has the logits
// of its part of the vocabulary for all tokens; loss sums are equal on all ranks, and the gradient of the input is a
// term of a sum over them.
#pragma once

#include "comm/group.h"
#include "nn/stage.h"

namespace conclave::nn {

struct OutputHead {
  ParameterId weight_VD;
  double logit_scale = 1;  // logits = this times x·Wᵀ
};

class Loss : public Stage {
 public:
  // Tokens whose logits exist at a time. Fixed: part of the bitwise promise.
  static constexpr int64_t kChunk = 256;
  // On a device, where a few hundred rows do not fill it.
  static constexpr int64_t kDeviceChunk = 4096;

  // `tp` are the ranks that hold the head's parts. forward is collective over it.
  Loss(StageSite site, const Parameters& parameters, OutputHead head, Slot input, const comm::Group& tp = {});
  std::vector<Slot> inputs() const override { return {input_}; }
  std::vector<Slot> outputs() const override { return {}; }
  std::vector<ParameterId> parameters() const override { return {head_.weight_VD}; }
  // Sets frame.loss_sum, on the device path frame.device_loss_sum; with a teacher also those of its loss. Then the
  // gradient is that of (1 - weight) cross entropy + weight · the teacher's loss.
  void forward(Frame& frame) override;
  void backward_input(Frame& frame) override;
  void backward_weight(Frame&) override {}

 private:
  // Losses of the tokens from `begin` on; in training the logits become their gradient.
  void chunk_losses(const Frame& frame, int64_t begin, Tensor& logits, Tensor& losses) const;
  // The same with a teacher: [2, n], cross entropies and its losses.
  void teacher_chunk_losses(const Frame& frame, int64_t begin, Tensor& logits, Tensor& losses_2N) const;

  const Parameters& parameters_;
  OutputHead head_;
  Slot input_;
  comm::Group tp_;
};

}  // namespace conclave::nn
