// SPDX-License-Identifier: Apache-2.0
#include "model/stage_memory.h"

#include <algorithm>
#include <map>
#include <string>

namespace conclave::model {
namespace {

using Stages = std::vector<std::unique_ptr<nn::Stage>>;

bool reads(const nn::Stage& stage, nn::Slot slot) {
  const auto inputs = stage.inputs();
  return std::find(inputs.begin(), inputs.end(), slot) != inputs.end();
}

bool wanted(nn::Redo redo, Recompute recompute) {
  switch (redo) {
    case nn::Redo::kNever:
      return false;
    case nn::Redo::kAlways:
      return true;
    case nn::Redo::kSelective:
      return recompute != Recompute::kNone;
    case nn::Redo::kAttention:
      return recompute == Recompute::kAttention || recompute == Recompute::kFull;
    case nn::Redo::kFfn:
      return recompute == Recompute::kFfn || recompute == Recompute::kFull;
    case nn::Redo::kFull:
      return recompute == Recompute::kFull;
  }
  return false;
}

// Whether stage s runs again in backward. A block's result is the input of the next one and stays.
bool runs_again(const Stages& stages, size_t s, Recompute recompute) {
  if (!wanted(stages[s]->redo(), recompute) || block_of(*stages[s]).empty()) return false;
  for (const nn::Slot slot : stages[s]->outputs())
    for (const auto& reader : stages)
      if (reads(*reader, slot) && block_of(*reader) != block_of(*stages[s])) return false;
  return true;
}

// Readers of forward alone.
void plan_evaluation(const Stages& stages, const std::vector<nn::Slot>& kept, std::vector<StageMemory>& memory) {
  for (size_t s = 0; s < stages.size(); ++s) {
    for (const nn::Slot slot : stages[s]->outputs()) {
      if (std::find(kept.begin(), kept.end(), slot) != kept.end()) continue;
      size_t last = s;
      for (size_t r = s + 1; r < stages.size(); ++r)
        if (reads(*stages[r], slot)) last = r;
      memory[last].done.push_back(slot);
    }
  }
}

}  // namespace

std::string block_of(const nn::Stage& stage) {
  const auto& name = stage.name();
  return name.starts_with("layers.") ? name.substr(0, name.find('.', sizeof "layers." - 1)) : "";
}

std::vector<StageMemory> plan_memory(const Stages& stages, Recompute recompute, const std::vector<nn::Slot>& kept) {
  std::vector<bool> again(stages.size());
  for (size_t s = 0; s < stages.size(); ++s) again[s] = runs_again(stages, s, recompute);
  std::map<std::string, size_t> last_of_block;
  for (size_t s = 0; s < stages.size(); ++s) last_of_block[block_of(*stages[s])] = s;
  std::vector<StageMemory> memory(stages.size());
  plan_evaluation(stages, kept, memory);
  for (size_t s = 0; s < stages.size(); ++s) {
    if (again[s]) {
      auto& end = memory[last_of_block[block_of(*stages[s])]];
      end.dropped.push_back(s);
      end.again.push_back(s);
      continue;
    }
    for (const nn::Slot slot : stages[s]->outputs()) {
      size_t last = s;
      bool read_again = false;
      for (size_t r = s + 1; r < stages.size(); ++r) {
        if (!reads(*stages[r], slot)) continue;
        last = r;
        read_again |= stages[r]->backward_reads_inputs() || again[r];
      }
      if (last != s && !read_again) memory[last].unread.push_back(slot);
    }
  }
  return memory;
}

void free_after_forward(const Stages& stages, const StageMemory& memory, size_t s, nn::Frame& frame) {
  if (!frame.training()) {
    frame.forget(stages[s]->index());
    for (const nn::Slot slot : memory.done) {
      frame.value(slot) = Tensor();
      frame.object(slot).reset();
    }
    return;
  }
  for (const nn::Slot slot : memory.unread) frame.value(slot) = Tensor();
  for (const size_t dropped : memory.dropped) {
    frame.forget(stages[dropped]->index());
    for (const nn::Slot slot : stages[dropped]->outputs()) frame.value(slot) = Tensor();
  }
}

}  // namespace conclave::model
