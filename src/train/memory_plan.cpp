// SPDX-License-Identifier: Apache-2.0
#include "train/memory_plan.h"

namespace conclave::train {

model::MemoryPlan memory_plan(const RunConfig& config) {
  const parallel::ParallelConfig& mesh = config.parallel;
  return {.dp = mesh.dp.value(),
          .tp = mesh.tp,
          .ep = mesh.ep,
          .etp = mesh.etp,
          .sequence_parallel = mesh.sequence_parallel,
          .micro_batches = config.train.global_batch_size / config.train.micro_batch_size,
          .micro_batch_tokens = config.train.micro_batch_size * config.data.seq_len,
          .reduction = mesh.reduction,
          .recompute = config.memory.recompute,
          .zero = mesh.zero,
          .in_flight = mesh.executor == parallel::ExecutorType::kInterleaved ? mesh.micro_batches_in_flight : 1,
          .gradient_payload = mesh.gradient_payload};
}

}  // namespace conclave::train
