// SPDX-License-Identifier: Apache-2.0
// Which values of a frame are freed after which stage's forward, because nobody reads them again or because backward
// makes them again. Planned once from the stages' wiring; an executor follows it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/memory_config.h"
#include "nn/stage.h"

namespace conclave::model {

// What an executor does around one stage, besides calling it.
struct StageMemory {
  std::vector<nn::Slot> unread;  // values that nobody reads after this stage's forward
  std::vector<nn::Slot> done;    // the same in an evaluation, where there is no backward; objects too
  std::vector<size_t> dropped;   // stages whose results are freed after this stage's forward: those of its whole block
  std::vector<size_t> again;     // stages to run again, in this order, before this stage's backward
};

// "layers.3" of "layers.3.attention"; empty outside the blocks.
std::string block_of(const nn::Stage& stage);

// One entry for each stage. Blocks are the stages named "layers.N.": what a stage outside reads is never dropped. What
// lies in `kept` is asked for when an evaluation has run.
std::vector<StageMemory> plan_memory(const std::vector<std::unique_ptr<nn::Stage>>& stages, Recompute recompute,
                                     const std::vector<nn::Slot>& kept = {});

// Frees what nobody needs after the forward of stage `s`, as the plan of its model says.
void free_after_forward(const std::vector<std::unique_ptr<nn::Stage>>& stages, const StageMemory& memory, size_t s,
                        nn::Frame& frame);

}  // namespace conclave::model
