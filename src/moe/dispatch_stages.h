// SPDX-License-Identifier: Apache-2.0
// The three stages after the router: Dispatch carries rows to their experts, ExpertStage computes, Combine carries
// results home and sums them. Only Dispatch and Combine communicate.
#pragma once

#include "moe/dispatcher.h"
#include "moe/experts.h"
#include "moe/route_stage.h"

namespace conclave::moe {

// Slots of one MoE layer's exchange, shared by its stages.
struct ExchangeSlots {
  nn::Slot input;                        // x [T, D]
  nn::Slot weights;                      // [N]
  nn::Slot decision;                     // object: Decision
  nn::Slot plan;                         // object: DispatchPlan
  nn::Slot rows;                         // [R, D]
  nn::Slot gates;                        // [R]
  nn::Slot results;                      // [R, D]
  nn::Slot output;                       // y [T, D]
  std::optional<nn::Slot> tokens = {};   // object: global token ids of the rows [R], where experts have dropout
  std::optional<nn::Slot> outputs = {};  // object: OutputSums of this rank's experts in training, where wanted
  std::optional<nn::Slot> bare = {};     // [R, D], results without gates in training, where wanted
  bool planned = false;                  // somebody has made the plan before the dispatch begins
};

class Dispatch : public nn::ExchangeStage {
 public:
  // With `resends` the rows are not kept for backward but sent again (dispatch.backward_rows: resend; rows that stay on
  // their rank always are: it is one copy).
  Dispatch(nn::StageSite site, const Dispatcher& dispatcher, const ExchangeSlots& slots, bool resends);
  std::vector<nn::Slot> inputs() const override { return {slots_.input, slots_.weights, slots_.decision}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.plan, slots_.rows, slots_.gates}; }
  bool backward_reads_inputs() const override { return false; }
  nn::Redo redo() const override { return resends_ ? nn::Redo::kAlways : nn::Redo::kFull; }
  // Sends the rows again along the plan that was made.
  void start_again(nn::Frame& frame) override { send(frame); }
  void start_forward(nn::Frame& frame) override;
  void finish_forward(nn::Frame& frame) override;
  void start_backward(nn::Frame& frame) override;
  void finish_backward(nn::Frame& frame) override;

 private:
  struct UnderWay {
    Transfer rows;
    std::optional<Transfer> tokens;  // global ids
  };
  void send(nn::Frame& frame);
  // After the rows: experts draw by them what a token loses. Kept, so that nobody sends them again.
  void send_tokens(nn::Frame& frame);

  const Dispatcher& dispatcher_;
  ExchangeSlots slots_;
  bool resends_;
};

class ExpertStage : public nn::Stage {
 public:
  // With `adds` another stage may have written the weights' gradients before this one (chunks of one layer).
  ExpertStage(nn::StageSite site, Experts experts, const ExchangeSlots& slots, bool adds = false);
  std::vector<nn::Slot> inputs() const override { return {slots_.plan, slots_.rows, slots_.gates}; }
  std::vector<nn::Slot> outputs() const override;
  std::vector<nn::ParameterId> parameters() const override { return experts_.parameters(); }
  nn::Redo redo() const override { return nn::Redo::kFfn; }
  void forward(nn::Frame& frame) override;
  void forward_again(nn::Frame& frame) override;  // all but the results, which no backward reads
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  Rows arrived(nn::Frame& frame) const;
  Segments segments(nn::Frame& frame) const;

  Experts experts_;
  ExchangeSlots slots_;
  bool adds_;
};

class Combine : public nn::ExchangeStage {
 public:
  Combine(nn::StageSite site, const Dispatcher& dispatcher, const ExchangeSlots& slots);
  // The plan points into the decision.
  std::vector<nn::Slot> inputs() const override { return {slots_.decision, slots_.plan, slots_.results}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  bool backward_reads_inputs() const override { return false; }
  void start_forward(nn::Frame& frame) override;
  void finish_forward(nn::Frame& frame) override;
  void start_backward(nn::Frame& frame) override;
  void finish_backward(nn::Frame& frame) override;

 private:
  const Dispatcher& dispatcher_;
  ExchangeSlots slots_;
};

}  // namespace conclave::moe
