// SPDX-License-Identifier: Apache-2.0
#include "nn/loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <span>

#include "core/tree_sum.h"
#include "kernels/bf16.h"
#include "kernels/cross_entropy.h"
#include "kernels/distillation.h"
#include "nn/linear.h"

namespace conclave::nn {

namespace {

// [t, ...]: what each rank knows of each row.
Tensor of_all_ranks(const Tensor& mine, const comm::Group& tp) {
  if (tp.size() == 1) return mine.unsqueeze(0);
  std::vector<int64_t> sizes{tp.size()};
  sizes.insert(sizes.end(), mine.sizes().begin(), mine.sizes().end());
  Tensor all = at::empty(sizes, mine.options());
  by_dtype(all, [&](auto zero) {
    using T = decltype(zero);
    tp.all_gather(std::span<const T>(elements<T>(mine)), elements<T>(all));
  });
  return all;
}

}  // namespace

Loss::Loss(StageSite site, const Parameters& parameters, OutputHead head, Slot input, const comm::Group& tp)
    : Stage(std::move(site)), parameters_(parameters), head_(head), input_(input), tp_(tp) {}

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
  const int64_t vocabulary = parameters_[head_.weight_VD].parts[0].shape[0];
  for (size_t i = 0; i < targets.size(); ++i)
    check(mask[i] == 0 || (targets[i] >= 0 && targets[i] < vocabulary), "a target is in the vocabulary");
  const kernels::VocabularyPart part{targets, mask, parameters_[head_.weight_VD].parts[0].slice.begin};
  Tensor lse = at::empty_like(losses), target = at::empty_like(losses);
  kernels::cross_entropy_part(logits, part, frame.training(), lse, target);
  const Tensor lse_all = at::logsumexp(of_all_ranks(lse, tp_), {0});
  losses.copy_(lse_all - of_all_ranks(target, tp_).sum(0));
  kernels::finish_cross_entropy_part(logits, part, frame.training(), (lse - lse_all).exp(), losses);
}

void Loss::teacher_chunk_losses(const Frame& frame, int64_t begin, Tensor& logits, Tensor& losses_2N) const {
  const TeacherSide& teacher = *frame.teacher();
  const int64_t count = logits.size(0);
  const LogicalTensor& head = parameters_[head_.weight_VD].parts[0];
  kernels::DistillationChunk chunk{
      .student_NV = logits,
      .teacher_NV = linear_forward(teacher.hidden_TD.narrow(0, begin, count), teacher.head_VD),
      .first = head.whole() ? 0 : head.slice.begin,
      .weight = teacher.weight,
      .temperature = teacher.temperature};
  if (frame.device() != nullptr) {
    chunk.targets_N = frame.device()->batch.targets_T.narrow(0, begin, count);
    chunk.mask_N = frame.device()->batch.loss_mask_T.narrow(0, begin, count);
  } else {
    const Batch& batch = frame.batch();
    for (int64_t i = begin; i < begin + count; ++i)
      check(batch.loss_mask[i] == 0 || (batch.targets[i] >= 0 && batch.targets[i] < head.shape[0]),
            "a target is in the vocabulary");
    chunk.targets_N = at::tensor(at::ArrayRef<int32_t>(&batch.targets[begin], count));
    chunk.mask_N = at::tensor(at::ArrayRef<float>(&batch.loss_mask[begin], count));
  }
  const Tensor sums_5N = kernels::distillation_sums(chunk);
  frame.poll();
  const Tensor all = of_all_ranks(sums_5N, tp_);  // [t, 5, N]
  const auto here = [&](kernels::DistillationSum which) { return sums_5N.select(0, which); };
  const auto lse = [&](kernels::DistillationSum which) {
    // Of one rank there is nothing to add up, and its bits stay.
    return tp_.size() == 1 ? here(which) : at::logsumexp(all.select(1, which), {0});
  };
  const Tensor student = lse(kernels::kStudent), student_hot = lse(kernels::kStudentHot),
               teacher_hot = lse(kernels::kTeacherHot);
  const Tensor part_of_q = (all.select(1, kernels::kTeacherHot) - teacher_hot).exp();
  const Tensor cross = (all.select(1, kernels::kCross) * part_of_q).sum(0);
  losses_2N.select(0, 0).copy_((student - all.select(1, kernels::kTarget).sum(0)) * chunk.mask_N);
  losses_2N.select(0, 1).copy_((cross - teacher_hot + student_hot) * chunk.mask_N *
                               (teacher.temperature * teacher.temperature));
  kernels::distillation_gradient(chunk,
                                 at::stack({here(kernels::kStudent) - student, here(kernels::kStudentHot) - student_hot,
                                            here(kernels::kTeacherHot) - teacher_hot})
                                     .exp());
}

void Loss::forward(Frame& frame) {
  // A factor of the logits is one of their input.
  const bool scaled = head_.logit_scale != 1;
  const Tensor x = scaled ? frame.value(input_) * head_.logit_scale : frame.value(input_);
  const Tensor weight = parameters_.value(head_.weight_VD);
  const int64_t T = x.size(0);
  const int64_t chunk = frame.device() != nullptr ? kDeviceChunk : kChunk;
  const bool taught = frame.training() && frame.teacher() != nullptr;
  Tensor losses = at::empty({taught ? 2 : 1, T}, x.options().dtype(kernels::wide_type(x)));
  Tensor dx = frame.training() ? at::empty_like(x) : Tensor();
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t count = std::min(chunk, T - begin);
    frame.poll();
    const Tensor x_chunk = x.narrow(0, begin, count);
    Tensor logits = linear_forward(x_chunk, weight);
    Tensor loss = losses.narrow(1, begin, count);
    if (taught) {
      teacher_chunk_losses(frame, begin, logits, loss);
    } else {
      Tensor cross_entropies = loss.select(0, 0);
      chunk_losses(frame, begin, logits, cross_entropies);
    }
    if (!frame.training()) continue;
    Tensor dx_chunk = dx.narrow(0, begin, count);
    frame.poll();
    at::mm_out(dx_chunk, logits, weight);
    frame.poll();
    linear_backward_weight(logits, x_chunk, frame.gradients().fresh && begin == 0,
                           frame.gradients().view(parameters_[head_.weight_VD]));
  }
  if (frame.training()) frame.saved<Tensor>(index()) = scaled ? dx.mul_(head_.logit_scale) : dx;
  const auto sum_up = [&](int64_t which, double& sum, Tensor& device_sum) {
    const Tensor exact = losses.select(0, which).to(at::kDouble);
    if (frame.device() != nullptr) {
      device_sum = exact.sum();
    } else {
      sum = tree_sum(std::span<const double>(exact.data_ptr<double>(), T));
    }
  };
  sum_up(0, frame.loss_sum, frame.device_loss_sum);
  if (taught) sum_up(1, frame.teacher_loss_sum, frame.device_teacher_loss_sum);
}

void Loss::backward_input(Frame& frame) {
  frame.add_grad(input_, frame.saved<Tensor>(index()));
  frame.forget(index());
}

}  // namespace conclave::nn
