// SPDX-License-Identifier: Apache-2.0
// The order in which one micro-batch passes the stages so that exchanges have work beside them: an exchange starts as
// soon as what it sends is there and is finished when somebody needs it; what no exchange waits for (a shared expert,
// weight gradients) runs in between. Planned once from the stages' wiring, the same on all ranks; who runs it, alone or
// against another micro-batch, is the executors' business.
//
//   sequential   shared  route  dispatch========>  experts  combine========>
//   this         route  start dispatch  shared  finish  experts  start combine  finish
#pragma once

#include <memory>
#include <vector>

#include "model/stage_memory.h"

namespace conclave::model {

enum class Verb {
  kForward,
  kStartForward,
  kFinishForward,
  kFree,  // what StageMemory says of the stage's forward
  kAgain,
  kStartAgain,
  kFinishAgain,
  kBackward,
  kStartBackward,
  kFinishBackward,
  kBackwardAside,  // backward before its turn: what it adds to the inputs' gradients is kept
  kAddAside,       // and added here, so that sums keep their order
  kWeights,        // backward_weight, then the outputs' values and gradients are freed
};

struct Operation {
  Verb verb;
  size_t stage;
  bool operator==(const Operation&) const = default;
};

// Before which other micro-batches may run: an exchange of this one has been under way since its start.
bool finishes_exchange(Verb verb);

struct Schedule {
  std::vector<Operation> forward, backward;
};

// Every stage runs with what it would read in the sequential order, and every sum of gradients has its order: the
// results have the same bits.
Schedule plan_schedule(const std::vector<std::unique_ptr<nn::Stage>>& stages, const std::vector<StageMemory>& memory);

}  // namespace conclave::model
