// SPDX-License-Identifier: Apache-2.0
// Stages of a layer whose router learns from stand-ins (moe/stand_ins.h): ReturnOutputs brings what experts gave home,
// each (token, expert) pair on its own and without weights; StandInStage passes the layer's output on, and in backward
// tells the router what experts would have been worth to tokens that did not choose them. Forward's values are those of
// a layer without them, bit for bit. In an evaluation both do nothing.
#pragma once

#include "comm/group.h"
#include "moe/dispatcher.h"
#include "nn/stage.h"

namespace conclave::moe {

// Of the layer, or of one chunk of its tokens.
struct ReturnSlots {
  nn::Slot decision;  // object: Decision, of which it reads the routing
  nn::Slot bare;      // [R, D], see ExchangeSlots
  nn::Slot home;      // [N, D] in the order of the routing's pairs
};

class ReturnOutputs : public nn::ExchangeStage {
 public:
  ReturnOutputs(nn::StageSite site, const Dispatcher& dispatcher, const ReturnSlots& slots)
      : ExchangeStage(std::move(site)), dispatcher_(dispatcher), slots_(slots) {}
  std::vector<nn::Slot> inputs() const override { return {slots_.decision, slots_.bare}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.home}; }
  bool backward_reads_inputs() const override { return false; }
  void start_forward(nn::Frame& frame) override;
  void finish_forward(nn::Frame& frame) override;
  // Outputs are constants to whoever reads them here.
  void start_backward(nn::Frame&) override {}
  void finish_backward(nn::Frame&) override {}

 private:
  const Dispatcher& dispatcher_;
  ReturnSlots slots_;
};

struct StandInSlots {
  nn::Slot routed;                 // [T, D] of this rank's tokens; nobody else reads it
  nn::Slot decision;               // object: Decision of the layer
  nn::Slot stand_ins;              // of the router: RouteSlots::stand_ins
  std::vector<ReturnSlots> parts;  // of all chunks
  nn::Slot output;                 // [T, D]
};

class StandInStage : public nn::Stage {
 public:
  // Collective over `tp` in backward: its ranks share the micro-batch's tokens, and each has the outputs of its own.
  StandInStage(nn::StageSite site, const comm::Group& tp, StandInSlots slots)
      : Stage(std::move(site)), tp_(tp), slots_(std::move(slots)) {}
  std::vector<nn::Slot> inputs() const override;
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;

 private:
  comm::Group tp_;
  StandInSlots slots_;
};

}  // namespace conclave::moe
