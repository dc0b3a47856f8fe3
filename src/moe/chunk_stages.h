// SPDX-License-Identifier: Apache-2.0
// Cuts the tokens of one MoE layer into chunks that pass dispatch, experts and combine apart, and joins what comes
// home. The router has decided for the whole micro-batch: chunks hold parts of its routing, with its drops. No rows are
// copied on the way in; each chunk's stages are those of dispatch_stages.h, but for their plans: those of all chunks
// are made at the cut, because counts that follow the rows of an earlier chunk over a link wait until these have
// passed.
#pragma once

#include "moe/dispatcher.h"
#include "moe/route_stage.h"

namespace conclave::moe {

// Slots of one chunk's exchange that the cut makes.
struct ChunkSlots {
  nn::Slot input;     // x of its tokens, [T/C, D]
  nn::Slot weights;   // of its pairs
  nn::Slot decision;  // object: Decision with the routing alone, tokens counted from the chunk's first
  nn::Slot plan;      // object: DispatchPlan
};

// Input slots: x [T, D], weights [N], decision.
class CutTokens : public nn::Stage {
 public:
  struct Slots {
    nn::Slot input, weights, decision;
    nn::Slot pairs;  // object: the pairs of each chunk, std::vector<std::vector<int32_t>>
    std::vector<ChunkSlots> chunks{};
  };
  // Its forward is collective over the group of `dispatcher`, which outlives it.
  CutTokens(nn::StageSite site, const Dispatcher& dispatcher, Slots slots)
      : Stage(std::move(site)), dispatcher_(dispatcher), slots_(std::move(slots)) {}
  std::vector<nn::Slot> inputs() const override { return {slots_.input, slots_.weights, slots_.decision}; }
  std::vector<nn::Slot> outputs() const override;
  bool backward_reads_inputs() const override { return false; }
  nn::Redo redo() const override { return nn::Redo::kAlways; }
  void forward(nn::Frame& frame) override;
  void forward_again(nn::Frame& frame) override;  // the routings stay
  void backward_input(nn::Frame& frame) override;

 private:
  const Dispatcher& dispatcher_;
  Slots slots_;
};

// y [T, D] from the chunks' outputs in order.
class JoinTokens : public nn::Stage {
 public:
  JoinTokens(nn::StageSite site, std::vector<nn::Slot> inputs, nn::Slot output)
      : Stage(std::move(site)), inputs_(std::move(inputs)), output_(output) {}
  std::vector<nn::Slot> inputs() const override { return inputs_; }
  std::vector<nn::Slot> outputs() const override { return {output_}; }
  bool backward_reads_inputs() const override { return false; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;

 private:
  std::vector<nn::Slot> inputs_;
  nn::Slot output_;
};

// The pairs of tokens [begin, end) of a routing, as a routing of their own; `pairs` becomes their numbers in the whole.
Routing part_of(const Routing& whole, int64_t begin, int64_t end, std::vector<int32_t>& pairs);

}  // namespace conclave::moe
