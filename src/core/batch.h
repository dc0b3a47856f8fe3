// SPDX-License-Identifier: Apache-2.0
// One micro-batch of token sequences, as the loader makes it and the model reads it. Every vector is [sequences,
// length], row-major. Padding has segment id -1: it is never dispatched and counts in no loss and no statistic.
#pragma once

#include <cstdint>
#include <vector>

namespace conclave {

struct Batch {
  int64_t sequences = 0;  // B
  int64_t length = 0;     // S
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;      // the token that follows each token
  std::vector<float> loss_mask;      // 1 where the target counts in the loss, 0 elsewhere
  std::vector<int32_t> segment_ids;  // document within the sequence, from 0; -1 = padding
  std::vector<int32_t> position_ids;
  std::vector<int64_t> global_token_ids;  // unique in the run: global sample number * S + offset
  int64_t index = 0;                      // global micro-batch number within the step, 0 ... M-1

  int64_t tokens_count() const { return sequences * length; }
};

}  // namespace conclave
