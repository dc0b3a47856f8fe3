// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "kernels/bf16.h"
#include "kernels/distillation.h"

namespace conclave::kernels {
namespace {

// Rows that count; the others are 0, so that what is not finite in them stays without effect.
struct Rows {
  Tensor student_NV, teacher_NV;  // over the temperature: hot
  Tensor student_hot_NV = {}, teacher_hot_NV = {};
  Tensor column_N1 = {};  // of the target, some column where it is not here
  Tensor here_N1 = {};    // whether it is here and counts
};

Rows rows_of(const DistillationChunk& chunk) {
  const Tensor counts = chunk.mask_N.ne(0).unsqueeze(1);
  const auto of_counted = [&](const Tensor& logits) {
    const Tensor exact = wide(logits);
    return at::where(counts, exact, at::zeros_like(exact));
  };
  Rows rows{.student_NV = of_counted(chunk.student_NV), .teacher_NV = of_counted(chunk.teacher_NV)};
  rows.student_hot_NV = rows.student_NV / chunk.temperature;
  rows.teacher_hot_NV = rows.teacher_NV / chunk.temperature;
  const int64_t n = chunk.student_NV.size(1);
  const Tensor column = (chunk.targets_N.to(at::kLong) - chunk.first).unsqueeze(1);
  rows.here_N1 = counts.logical_and(column.ge(0)).logical_and(column.lt(n));
  rows.column_N1 = column.clamp(0, n - 1);
  return rows;
}

}  // namespace

Tensor distillation_sums_by_tensors(const DistillationChunk& chunk) {
  const Rows rows = rows_of(chunk);
  const Tensor q = at::softmax(rows.teacher_hot_NV, 1);
  const Tensor target = at::gather(rows.student_NV, 1, rows.column_N1) * rows.here_N1;
  const Tensor all =
      at::stack({at::logsumexp(rows.student_NV, {1}), target.squeeze(1), at::logsumexp(rows.student_hot_NV, {1}),
                 at::logsumexp(rows.teacher_hot_NV, {1}), (q * (rows.teacher_hot_NV - rows.student_hot_NV)).sum(1)});
  return all * chunk.mask_N.ne(0);
}

void distillation_gradient_by_tensors(DistillationChunk& chunk, const Tensor& share_3N) {
  const Rows rows = rows_of(chunk);
  const Tensor mask = chunk.mask_N.to(rows.student_NV.scalar_type()).unsqueeze(1);
  const auto share = [&](int64_t which) { return share_3N.select(0, which).unsqueeze(1); };
  const Tensor columns = at::arange(rows.student_NV.size(1), rows.column_N1.options());
  const Tensor one_hot = columns.eq(rows.column_N1).logical_and(rows.here_N1);
  const Tensor of_targets = at::softmax(rows.student_NV, 1) * share(0) - one_hot.to(mask.scalar_type());
  const Tensor of_teacher =
      at::softmax(rows.student_hot_NV, 1) * share(1) - at::softmax(rows.teacher_hot_NV, 1) * share(2);
  chunk.student_NV.copy_(mask * ((1 - chunk.weight) * of_targets + chunk.weight * chunk.temperature * of_teacher));
}

}  // namespace conclave::kernels
