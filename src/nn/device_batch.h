// SPDX-License-Identifier: Apache-2.0
// The numbers of a micro-batch as tensors on a device, copied once and without waiting, and the few counts of it that
// stages need as numbers: the host has them already. B sequences, T tokens.
#pragma once

#include <vector>

#include "core/batch.h"
#include "core/tensor.h"

namespace conclave::nn {

struct DeviceBatch {
  Tensor tokens_T, targets_T, positions_T, segment_ids_BS;  // int32
  Tensor loss_mask_T;                                       // float
  Tensor counts_2B;                                         // fp64: tokens_B and targets_B
  std::vector<int64_t> tokens_B;                            // that are not padding
  std::vector<double> targets_B;                            // that count in the loss

  int64_t tokens() const;
  double targets() const;
};

// Throws BugError for a token, or a target that counts, outside the vocabulary, and for a position that is not below
// `positions`: on a device nobody would notice.
DeviceBatch copy_batch(const Batch& batch, at::Device device, int64_t vocab, int64_t positions);

}  // namespace conclave::nn
