// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <span>

#include "core/tree_sum.h"
#include "kernels/cross_entropy.h"
#include "nn/linear.h"

namespace conclave::nn {

Loss::Loss(StageSite site, const Parameters& parameters, ParameterId head_VD, Slot input)
    : Stage(std::move(site)), parameters_(parameters), head_(head_VD), input_(input) {}

void Loss::forward(Frame& frame) {
  const Tensor& x = frame.value(input_);
  const Batch& batch = frame.batch();
  const Tensor weight = parameters_.value(head_);
  const int64_t T = x.size(0);
  Tensor losses = at::empty({T}, x.options());
  Tensor dx = frame.training() ? at::empty_like(x) : Tensor();
  for (int64_t begin = 0; begin < T; begin += kChunk) {
    const int64_t count = std::min(kChunk, T - begin);
    const Tensor x_chunk = x.narrow(0, begin, count);
    Tensor logits = linear_forward(x_chunk, weight);
    Tensor loss = losses.narrow(0, begin, count);
    kernels::cross_entropy_rows(logits, std::span(batch.targets).subspan(begin, count),
                                std::span(batch.loss_mask).subspan(begin, count), frame.training(), loss);
    if (!frame.training()) continue;
    Tensor dx_chunk = dx.narrow(0, begin, count);
    at::mm_out(dx_chunk, logits, weight);
    linear_backward_weight(logits, x_chunk, frame.gradients().fresh && begin == 0,
                           frame.gradients().view(parameters_[head_]));
  }
  const Tensor exact = losses.to(at::kDouble);
  frame.loss_sum = tree_sum(std::span<const double>(exact.data_ptr<double>(), T));
  if (frame.training()) frame.saved<Tensor>(index()) = dx;
}

void Loss::backward_input(Frame& frame) {
  frame.add_grad(input_, frame.saved<Tensor>(index()));
  frame.forget(index());
}

}  // namespace conclave::nn
