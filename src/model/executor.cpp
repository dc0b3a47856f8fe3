// SPDX-License-Identifier: Apache-2.0
#include "model/executor.h"

#include "core/error.h"
#include "model/executors/overlapped.h"
#include "model/executors/sequential.h"

namespace conclave::model {

std::unique_ptr<Executor> Executor::make(const ExecutorChoice& choice, const Transformer& model, Timeline* timeline) {
  switch (choice.type) {
    case parallel::ExecutorType::kSequential:
      return std::make_unique<SequentialExecutor>(model, timeline);
    case parallel::ExecutorType::kChunked:
      return std::make_unique<ChunkedExecutor>(model, timeline);
    case parallel::ExecutorType::kInterleaved:
      return std::make_unique<InterleavedExecutor>(model, choice.in_flight, timeline);
  }
  throw BugError("internal error: unknown executor");
}

}  // namespace conclave::model
