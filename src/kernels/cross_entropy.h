// SPDX-License-Identifier: Apache-2.0
// Cross entropy of one chunk of logits and, in place, its gradient. Float or double. Sums are not divided here: the
// step divides once by the number of valid tokens of the global batch.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace conclave::kernels {

// loss[i] = mask[i] * (logsumexp(logits[i]) - logits[i][targets[i]]). With `gradient` the logits become their gradient,
// mask[i] * (softmax - one_hot); without it they keep their values. Where mask[i] is 0 the target may be anything, and
// loss and gradient are exactly 0 even if the logits are not finite.
void cross_entropy_rows(Tensor& logits_NV, std::span<const int32_t> targets, std::span<const float> mask, bool gradient,
                        Tensor& loss_N);

// The same with int32 targets and float masks on the device of the logits. The losses are float where the logits are
// bf16.
void cross_entropy_rows(Tensor& logits_NV, const Tensor& targets_N, const Tensor& mask_N, bool gradient,
                        Tensor& loss_N);

// A rank's columns of the vocabulary, and what is wanted of each row.
struct VocabularyPart {
  std::span<const int32_t> targets;  // of the whole vocabulary
  std::span<const float> mask;
  int64_t first = 0;  // token of column 0
};
// The same for logits whose columns are spread over ranks, in two steps. First: lse[i] = logsumexp of the columns here,
// target[i] = the target's logit, 0 if it is elsewhere; with `gradient` the logits become mask[i] * softmax over the
// columns here. Rows with mask 0 give 0.
void cross_entropy_part(Tensor& logits_NV, const VocabularyPart& part, bool gradient, Tensor& lse_N, Tensor& target_N);
// Second, when lse and target of all ranks are known: loss[i], which is (lse of all - target) before, times mask[i];
// and logits[i] * share[i], share = exp(lse here - lse of all), less mask[i] at the target.
void finish_cross_entropy_part(Tensor& logits_NV, const VocabularyPart& part, bool gradient, const Tensor& share_N,
                               Tensor& loss_N);

// Both steps with int32 targets and float masks on the device of the logits. lse, target, share and loss are float
// where the logits are bf16.
struct DeviceVocabularyPart {
  Tensor targets_N, mask_N;
  int64_t first = 0;
};
void cross_entropy_part(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient, Tensor& lse_N,
                        Tensor& target_N);
void finish_cross_entropy_part(Tensor& logits_NV, const DeviceVocabularyPart& part, bool gradient,
                               const Tensor& share_N, Tensor& loss_N);

}  // namespace conclave::kernels
