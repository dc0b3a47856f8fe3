// SPDX-License-Identifier: Apache-2.0
#include "nn/device_batch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace conclave::nn {
namespace {

void check_indices(const Batch& batch, int64_t vocab, int64_t positions) {
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    check(batch.tokens[t] < vocab, "a token is in the vocabulary");
    check(batch.loss_mask[t] == 0 || (batch.targets[t] >= 0 && batch.targets[t] < vocab),
          "a target is in the vocabulary");
    check(batch.position_ids[t] >= 0 && batch.position_ids[t] < positions, "a position is one the model has");
  }
}

}  // namespace

int64_t DeviceBatch::tokens() const { return std::accumulate(tokens_B.begin(), tokens_B.end(), int64_t{0}); }

double DeviceBatch::targets() const { return std::accumulate(targets_B.begin(), targets_B.end(), 0.0); }

DeviceBatch copy_batch(const Batch& batch, at::Device device, int64_t vocab, int64_t positions) {
  check_indices(batch, vocab, positions);
  const int64_t T = batch.tokens_count(), B = batch.sequences;
  // Pinned memory is what a device copies from while the host goes on; one piece for all tokens, one copy.
  const auto pinned = at::TensorOptions().pinned_memory(device.is_cuda());
  const Tensor host = at::empty({5, T}, pinned.dtype(at::kInt));
  const Tensor counts = at::zeros({2, B}, pinned.dtype(at::kDouble));
  int32_t* row = host.data_ptr<int32_t>();
  for (const auto* values : {&batch.tokens, &batch.targets, &batch.position_ids, &batch.segment_ids})
    row = std::copy(values->begin(), values->end(), row);
  if (T > 0) std::memcpy(row, batch.loss_mask.data(), T * sizeof(float));
  DeviceBatch copy;
  copy.tokens_B.assign(B, 0);
  copy.targets_B.assign(B, 0.0);
  for (int64_t t = 0; t < T; ++t) {
    copy.tokens_B[t / batch.length] += batch.segment_ids[t] >= 0;
    copy.targets_B[t / batch.length] += batch.loss_mask[t];
  }
  double* count = std::copy(copy.tokens_B.begin(), copy.tokens_B.end(), counts.data_ptr<double>());
  std::copy(copy.targets_B.begin(), copy.targets_B.end(), count);
  const Tensor all = host.to(device, /*non_blocking=*/true);
  copy.tokens_T = all[0];
  copy.targets_T = all[1];
  copy.positions_T = all[2];
  copy.segment_ids_BS = all[3].view({B, batch.length});
  copy.loss_mask_T = all[4].view(at::kFloat);
  copy.counts_2B = counts.to(device, /*non_blocking=*/true);
  return copy;
}

}  // namespace conclave::nn
