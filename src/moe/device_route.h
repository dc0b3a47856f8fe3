// SPDX-License-Identifier: Apache-2.0
// The router's stage on a device: scores in fp32, choice, order of rows and statistics, without a look from the host.
// Top-k routers that drop nothing; the host stage (route_stage.h) knows the rest, and train/device_rules.cpp refuses it
// for a device. Input x [T, D]; outputs the weights [T, K] and, as an object, the DeviceDecision.
#pragma once

#include <memory>

#include "moe/device_balance.h"
#include "moe/route_stage.h"
#include "moe/statistics.h"

namespace conclave::moe {

// What the decision slot holds on the device path.
struct DeviceDecision {
  kernels::Routed routed;
  kernels::SlotMap slots;
};

kernels::RouteRule route_rule(const RouterConfig& config, const RouteShape& shape);

// All of a routing's statistics as one fp64 tensor, and what they say of a micro-batch once the host has them.
Tensor packed_statistics(const kernels::Routed& routed);
RouterStatistics unpacked_statistics(std::span<const double> packed, const std::vector<int64_t>& tokens_B,
                                     const std::vector<double>& targets_B, const RouteShape& shape);

class DeviceRouteStage : public nn::Stage {
 public:
  // `config.blocks` is one parameter; `state` outlives the stage.
  DeviceRouteStage(nn::StageSite site, const nn::Parameters& parameters, const RouteConfig& config,
                   const DeviceState& state);
  void connect(RouteSlots slots) { slots_ = std::move(slots); }
  // What the host asks between steps.
  const Router& router() const { return *router_; }

  std::vector<nn::Slot> inputs() const override { return {slots_.input}; }
  std::vector<nn::Slot> outputs() const override { return {slots_.weights, slots_.decision}; }
  std::vector<nn::ParameterId> parameters() const override { return {weight_}; }
  void forward(nn::Frame& frame) override;
  void backward_input(nn::Frame& frame) override;
  void backward_weight(nn::Frame& frame) override;

 private:
  const nn::Parameters& parameters_;
  nn::ParameterId weight_;
  kernels::RouteRule rule_;
  DeviceBalance balance_;
  std::unique_ptr<Router> router_;
  const DeviceState& state_;
  RouteSlots slots_;
};

}  // namespace conclave::moe
