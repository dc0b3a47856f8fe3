// SPDX-License-Identifier: Apache-2.0
// The three stages after a device's router where experts are spread over ranks: DeviceDispatch carries rows to their
// experts, DeviceRankExperts computes, DeviceCombine carries results home and sums them. A micro-batch's layer looks at
// a device's numbers once, in DeviceDispatch's forward; backward follows the plan that was made then.
#pragma once

#include "moe/device_exchange.h"
#include "moe/device_experts.h"

namespace conclave::moe {

// Of one layer's exchange, shared by its stages. R rows are here, sorted by (local expert, source).
struct DeviceExchangeSlots {
  nn::Slot input;     // x [T, D]
  nn::Slot weights;   // [T, K]
  nn::Slot decision;  // object: DeviceDecision
  nn::Slot plan;      // object: DevicePlan
  nn::Slot rows;      // [R, D]
  nn::Slot gates;     // [R]
  nn::Slot results;   // [R, D]
  nn::Slot output;    // y [T, D]
};

class DeviceDispatch : public nn::ExchangeStage {
 public:
  // With `resends` the rows are not kept for backward but sent again.
  DeviceDispatch(nn::StageSite site, const comm::Group& ep, const DeviceExchangeSlots& slots, bool resends);
  std::vector<nn::Slot> inputs() const override { return {slots_.input, slots_.weights, slots_.decision}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.plan, slots_.rows, slots_.gates}; }
  bool backward_reads_inputs() const override { return false; }
  nn::Redo redo() const override { return resends_ ? nn::Redo::kAlways : nn::Redo::kFull; }
  void start_again(nn::Frame& frame) override;  // along the plan that was made
  void start_forward(nn::Frame& frame) override;
  void finish_forward(nn::Frame& frame) override;
  void start_backward(nn::Frame& frame) override;
  void finish_backward(nn::Frame& frame) override;

 private:
  struct UnderWay {
    Tensor rows, gates;  // of this rank, sorted by expert
    DeviceTransfer of_rows, of_gates;
  };
  void gather(nn::Frame& frame);
  void send(nn::Frame& frame);

  DeviceExchange exchange_;
  DeviceExchangeSlots slots_;
  bool resends_;
};

class DeviceRankExperts : public nn::Stage {
 public:
  // The experts of this rank.
  DeviceRankExperts(nn::StageSite site, const nn::Parameters& parameters, const std::vector<ExpertWeights>& experts,
                    const DeviceExchangeSlots& slots);
  std::vector<nn::Slot> inputs() const override { return {slots_.plan, slots_.rows, slots_.gates}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.results}; }
  std::vector<nn::ParameterId> parameters() const override { return experts_.parameters(); }
  nn::Redo redo() const override { return nn::Redo::kFfn; }
  void forward(nn::Frame& frame) override;
  void forward_again(nn::Frame& frame) override;  // all but the results, which no backward reads
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  kernels::RowGroups groups(nn::Frame& frame) const;

  DeviceExperts experts_;
  DeviceExchangeSlots slots_;
};

class DeviceCombine : public nn::ExchangeStage {
 public:
  DeviceCombine(nn::StageSite site, const comm::Group& ep, const DeviceExchangeSlots& slots);
  std::vector<nn::Slot> inputs() const override { return {slots_.decision, slots_.plan, slots_.results}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.output}; }
  bool backward_reads_inputs() const override { return false; }
  void start_forward(nn::Frame& frame) override;
  void finish_forward(nn::Frame& frame) override;
  void start_backward(nn::Frame& frame) override;
  void finish_backward(nn::Frame& frame) override;

 private:
  DeviceExchange exchange_;
  DeviceExchangeSlots slots_;
};

}  // namespace conclave::moe
