// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <span>

#include "core/tree_sum.h"
#include "kernels/bf16.h"
#include "kernels/cross_entropy.h"
#include "nn/linear.h"

namespace conclave::nn {

namespace {

// [t, N]: what each rank knows of each row.
Tensor of_all_ranks(const Tensor& mine_N, const comm::Group& tp) {
  Tensor all = at::empty({tp.size(), mine_N.size(0)}, mine_N.options());
  by_dtype(all, [&](auto zero) {
    using T = decltype(zero);
    tp.all_gather(std::span<const T>(elements<T>(mine_N)), elements<T>(all));
  });
  return all;
}

}  // namespace

Loss::Loss(StageSite site, const Parameters& parameters, ParameterId head_VD, Slot input, const comm::Group& tp)
    : Stage(std::move(site)), parameters_(parameters), head_(head_VD), input_(input), tp_(tp) {}

void Loss::chunk_losses(const Frame& frame, int64_t begin, Tensor& logits, Tensor& losses) const {
  if (frame.device() != nullptr) {
    const auto chunk = [&](const Tensor& of_tokens) { return of_tokens.narrow(0, begin, logits.size(0)); };
    const DeviceBatch& batch = frame.device()->batch;
    return kernels::cross_entropy_rows(logits, chunk(batch.targets_T), chunk(batch.loss_mask_T), frame.training(),
                                       losses);
  }
  const auto targets = std::span(frame.batch().targets).subspan(begin, logits.size(0));
  const auto mask = std::span(frame.batch().loss_mask).subspan(begin, logits.size(0));
  if (tp_.size() == 1) {
    kernels::cross_entropy_rows(logits, targets, mask, frame.training(), losses);
    return;
  }
  const int64_t vocabulary = parameters_[head_].parts[0].shape[0];
  for (size_t i = 0; i < targets.size(); ++i)
    check(mask[i] == 0 || (targets[i] >= 0 && targets[i] < vocabulary), "a target is in the vocabulary");
  const kernels::VocabularyPart part{targets, mask, parameters_[head_].parts[0].slice.begin};
  Tensor lse = at::empty_like(losses), target = at::empty_like(losses);
  kernels::cross_entropy_part(logits, part, frame.training(), lse, target);
  const Tensor lse_all = at::logsumexp(of_all_ranks(lse, tp_), {0});
  losses.copy_(lse_all - of_all_ranks(target, tp_).sum(0));
  kernels::finish_cross_entropy_part(logits, part, frame.training(), (lse - lse_all).exp(), losses);
}

void Loss::forward(Frame& frame) {
  const Tensor& x = frame.value(input_);
  const Tensor weight = parameters_.value(head_);
  const int64_t T = x.size(0);
  const int64_t chunk = frame.device() != nullptr ? kDeviceChunk : kChunk;
  Tensor losses = at::empty({T}, x.options().dtype(kernels::wide_type(x)));
  Tensor dx = frame.training() ? at::empty_like(x) : Tensor();
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t count = std::min(chunk, T - begin);
    frame.poll();
    const Tensor x_chunk = x.narrow(0, begin, count);
    Tensor logits = linear_forward(x_chunk, weight);
    Tensor loss = losses.narrow(0, begin, count);
    chunk_losses(frame, begin, logits, loss);
    if (!frame.training()) continue;
    Tensor dx_chunk = dx.narrow(0, begin, count);
    frame.poll();
    at::mm_out(dx_chunk, logits, weight);
    frame.poll();
    linear_backward_weight(logits, x_chunk, frame.gradients().fresh && begin == 0,
                           frame.gradients().view(parameters_[head_]));
  }
  const Tensor exact = losses.to(at::kDouble);
  if (frame.training()) frame.saved<Tensor>(index()) = dx;
  if (frame.device() != nullptr) {
    frame.device_loss_sum = exact.sum();
    return;
  }
  frame.loss_sum = tree_sum(std::span<const double>(exact.data_ptr<double>(), T));
}

void Loss::backward_input(Frame& frame) {
  frame.add_grad(input_, frame.saved<Tensor>(index()));
  frame.forget(index());
}

}  // namespace conclave::nn
