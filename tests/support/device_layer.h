// SPDX-License-Identifier: Apache-2.0
// One MoE layer of the device path outside a transformer: with all experts here, or exchanging rows between ranks.
// Weights are those of MoeLayer (support/moe_layer.h) with the same sizes.
#pragma once

#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "moe/device_exchange_stages.h"
#include "support/moe_layer.h"

namespace conclave::testing {

struct DeviceResult {
  Tensor y, dx, drouter, dgate_up_E2FD, ddown_EDF;  // of experts: those of this rank
  kernels::Routed routed;
  int64_t forward_reads = 0, backward_reads = 0;  // looks of the host
};

// Where a layer computes. Rows go through an exchange wherever the group has several ranks, and on request in one of
// one.
struct DevicePlace {
  comm::Group ep = {};
  at::Device device = at::kCPU;
  bool exchanges = ep.size() > 1;
};

class DeviceLayer {
 public:
  DeviceLayer(const moe::MoeConfig& config, LayerSize size, at::ScalarType dtype, at::ScalarType compute,
              const DevicePlace& place = {})
      : device_(place.device) {
    const comm::Group& ep = place.ep;
    const int64_t E = size.experts, D = size.width, F = size.expert_width, local = E / ep.size();
    router_ = parameters_.add(
        {.parts = {{"router", {E, D}}}, .shape = {E, D}, .kind = nn::ParameterKind::kRouter, .init_std = 1.0});
    const auto expert = [&](const char* part, int64_t e, std::vector<int64_t> sizes) {
      const auto name = fmt::format("{}.{}", part, local * ep.rank() + e);
      return parameters_.add({.parts = {{name, sizes}}, .shape = sizes, .expert = true, .init_std = 0.7});
    };
    std::vector<moe::ExpertWeights> experts(local);
    for (int64_t e = 0; e < local; ++e) gate_up_.push_back(experts[e].gate_up_2FD = expert("gate_up", e, {2 * F, D}));
    for (int64_t e = 0; e < local; ++e) down_.push_back(experts[e].down_DF = expert("down", e, {D, F}));
    parameters_.allocate(dtype, 1);
    parameters_.place(device_, compute);
    moe::Balancer(config.balance).declare(std::vector<int64_t>{E}, state_);
    device_state_ = std::make_unique<moe::DeviceState>(state_, device_);
    add_stages(config, {.experts = E, .top_k = size.top_k, .vocab = 64}, experts, place);
  }
  moe::MethodState& state() { return state_.layers[0]; }
  int64_t reads() const { return reads_.count(); }
  // Whether gradients are written over, as by the first micro-batch of a step, or added to what is there: kHeld.
  bool fresh = true;
  static constexpr double kHeld = 1.0;

  // With `again` all but the route runs twice, as if nothing had been kept for backward. Without `dy` an evaluation.
  // Collective.
  DeviceResult run(const Batch& batch, const Tensor& x, const Tensor& dy, bool again = false) {
    device_state_->refresh();
    nn::Gradients gradients{at::zeros_like(parameters_.flat(false)), {at::zeros_like(parameters_.flat(true))}};
    for (Tensor* flat : {&gradients.dense, &gradients.experts[0]}) flat->fill_(fresh ? 1e9 : kHeld);
    gradients.fresh = fresh;
    nn::Frame frame(batch, 8, static_cast<int>(stages_.size()), dy.defined() ? &gradients : nullptr);
    frame.set_device({nn::copy_batch(batch, device_, 64, 4096), &reads_});
    frame.value(0) = x;
    DeviceResult result;
    const int64_t before = reads();
    for (const auto& stage : stages_) stage->forward(frame);
    result.y = frame.value(3);
    result.routed = frame.object_as<moe::DeviceDecision>(2).routed;
    result.forward_reads = reads() - before;
    if (!dy.defined()) return result;
    frame.grad(3) = dy;
    for (size_t s = 1; again && s + 1 < std::max<size_t>(3, stages_.size()); ++s) {
      frame.forget(static_cast<int>(s));
      stages_[s]->forward_again(frame);
    }
    for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
      (*stage)->backward_input(frame);
      (*stage)->backward_weight(frame);
    }
    result.backward_reads = reads() - before - result.forward_reads;
    result.dx = frame.grad(0);
    result.drouter = gradients.view(parameters_[router_]).clone();
    result.dgate_up_E2FD = nn::stacked_view(gradients.experts[0], parameters_, gate_up_).clone();
    result.ddown_EDF = nn::stacked_view(gradients.experts[0], parameters_, down_).clone();
    return result;
  }

 private:
  void add_stages(const moe::MoeConfig& config, const moe::RouteShape& shape,
                  const std::vector<moe::ExpertWeights>& experts, const DevicePlace& place) {
    auto route = std::make_unique<moe::DeviceRouteStage>(nn::StageSite{"route", 0}, parameters_,
                                                         moe::RouteConfig{config, {router_}, shape}, *device_state_);
    route->connect({.input = 0, .weights = 1, .decision = 2, .all_decisions = {2}});
    stages_.push_back(std::move(route));
    if (!place.exchanges) {
      stages_.push_back(std::make_unique<moe::DeviceExpertStage>(nn::StageSite{"experts", 1}, parameters_, experts,
                                                                 moe::DeviceExpertSlots{0, 1, 2, 3}));
      return;
    }
    const moe::DeviceExchangeSlots slots{
        .input = 0, .weights = 1, .decision = 2, .plan = 4, .rows = 5, .gates = 6, .results = 7, .output = 3};
    stages_.push_back(std::make_unique<moe::DeviceDispatch>(nn::StageSite{"dispatch", 1}, place.ep, slots, true));
    stages_.push_back(
        std::make_unique<moe::DeviceRankExperts>(nn::StageSite{"experts", 2}, parameters_, experts, slots));
    stages_.push_back(std::make_unique<moe::DeviceCombine>(nn::StageSite{"combine", 3}, place.ep, slots));
  }

  at::Device device_;
  nn::Parameters parameters_;
  nn::ParameterId router_ = 0;
  std::vector<nn::ParameterId> gate_up_, down_;
  moe::ModelState state_;
  std::unique_ptr<moe::DeviceState> device_state_;
  std::vector<std::unique_ptr<nn::Stage>> stages_;
  kernels::HostReads reads_;
};

// Relative to the largest element.
inline void expect_near(const Tensor& actual, const Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  if (actual.numel() == 0) return;
  const Tensor e = expected.to(at::kDouble), difference = (actual.to(at::kDouble) - e).abs();
  EXPECT_LE(difference.max().item<double>(), tolerance * std::max(1e-3, e.abs().max().item<double>())) << what;
}

}  // namespace conclave::testing
