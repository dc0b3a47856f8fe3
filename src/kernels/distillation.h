// SPDX-License-Identifier: Apache-2.0
// Cross entropy and distillation of one chunk of logits, and in place the gradient of their mix. Of each row, with
// student logits z, teacher logits t, temperature τ and q = softmax(t/τ), p = softmax(z/τ):
//
//   loss = (1 − a)·CE + a·τ²·KL(q ‖ p),   ∂loss/∂z = (1 − a)·(softmax(z) − one_hot) + a·τ·(p − q)
//
// (Hinton, Vinyals and Dean 2015, arXiv 1503.02531). In two steps, because columns may be spread over ranks; what ranks
// tell each other in between is the caller's. On the CPU in a loop over rows, on a device as tensor operations.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace conclave::kernels {

struct DistillationChunk {
  Tensor student_NV;                     // this rank's columns; float, double or bf16
  Tensor teacher_NV;                     // the same columns and type; may be overwritten
  Tensor targets_N = {};                 // int32, of the whole vocabulary; anything where the mask is 0
  Tensor mask_N = {};                    // float
  int64_t first = 0;                     // token of column 0
  double weight = 0.5, temperature = 1;  // a, τ
};

// Of each row over the columns here, rows of [5, N] in the order of this enum; float where the logits are bf16. Rows
// with mask 0 give 0.
enum DistillationSum {
  kStudent,     // logsumexp(z)
  kTarget,      // z of the target, 0 where it is elsewhere
  kStudentHot,  // logsumexp(z/τ)
  kTeacherHot,  // logsumexp(t/τ)
  kCross,       // Σ q·(t − z)/τ, q over the columns here
};
Tensor distillation_sums(const DistillationChunk& chunk);

// The student's logits become mask · ∂loss/∂z. `share_3N`: what the columns here are of softmax(z), p and q,
// exp(logsumexp here − logsumexp of all). Rows with mask 0 become 0, whatever the logits.
void distillation_gradient(DistillationChunk& chunk, const Tensor& share_3N);

// The same in tensor operations, anywhere: what runs on a device, and the reference.
Tensor distillation_sums_by_tensors(const DistillationChunk& chunk);
void distillation_gradient_by_tensors(DistillationChunk& chunk, const Tensor& share_3N);

}  // namespace conclave::kernels
