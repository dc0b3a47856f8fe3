// SPDX-License-Identifier: Apache-2.0
// One mixture-of-experts layer made of the real stages (route, dispatch, experts, combine), outside a transformer, so
// that tests choose its input and the gradient of its output. Weights depend on the seed alone, on every layout.
#pragma once

#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <memory>
#include <vector>

#include "comm/group.h"
#include "kernels/tensor_checks.h"
#include "moe/dispatch_stages.h"
#include "moe/home_stage.h"
#include "moe/stand_in_stages.h"
#include "support/moe_reference.h"

namespace conclave::testing {

struct LayerSize {
  int64_t experts = 4, top_k = 2, width = 6, expert_width = 5;
};

// What one forward and backward gave. Gradients are undefined after an evaluation.
struct LayerResult {
  Tensor y, dx, drouter;
  Tensor rows, drows, dgates;              // what the experts saw, padding included
  std::vector<ReferenceWeights> dexperts;  // one for each source rank; router_ED undefined; local experts
  moe::Decision decision;
  moe::DispatchPlan plan;
  moe::OutputSums outputs;  // of training
};

class MoeLayer {
 public:
  MoeLayer(const moe::MoeConfig& config, LayerSize size, at::ScalarType dtype, const comm::Group& ep = {},
           uint64_t seed = 1)
      : size_(size), ranks_(ep.size()), dispatcher_(moe::Dispatcher::make(config.dispatch, ep)) {
    const int64_t E = size.experts, D = size.width, F = size.expert_width, local = E / ep.size();
    const moe::RouteShape shape{.experts = E, .top_k = size.top_k, .vocab = 64, .seed = seed, .hidden = D};
    const auto router = moe::Router::make(config.router, shape);
    for (const auto& block : router->blocks(shape))
      blocks_.push_back(
          parameters_.add({.parts = {{block.name, {block.columns, D}}}, .shape = {block.columns, D}, .init_std = 1.0}));
    for (int64_t e = local * ep.rank(); e < local * (ep.rank() + 1); ++e) {
      const auto expert = [&](const char* part, std::vector<int64_t> shape) {
        return parameters_.add(
            {.parts = {{fmt::format("{}.{}", part, e), shape}}, .shape = shape, .expert = true, .init_std = 0.7});
      };
      experts_.push_back({expert("gate_up", {2 * F, D}), expert("down", {D, F})});
    }
    const int64_t vectors = router->home_terms() - 1;
    if (vectors > 0 && router->kept_vectors().empty())
      vectors_.learned =
          parameters_.add({.parts = {{"vectors", {vectors, D}}}, .shape = {vectors, D}, .init_std = 1.0});
    parameters_.allocate(dtype, seed);
    const std::vector<int64_t> experts{E};
    moe::Balancer(config.balance).declare(experts, state_);
    router->declare(shape, state_.layers[0]);
    if (const auto name = router->kept_vectors(); !name.empty()) {
      vectors_ = {.state = &state_.layers[0], .name = std::string(name)};
      state().get(name).copy_(kernels::random_tensor({vectors, D}, at::kFloat, 30));  // as after some training
    }
    moe::ExchangeSlots slots{0, 1, 2, 3, 4, 5, 6, 7};
    slots.tokens = kTokens, slots.outputs = kOutputs;
    std::optional<moe::ExpertDropout> dropout;
    if (config.experts.dropout > 0)
      dropout.emplace(
          config.experts.dropout,
          moe::DropoutSite{.seed = seed, .experts = E, .first_expert = local * ep.rank(), .expert_width = F});
    else
      slots.tokens.reset();
    auto route = std::make_unique<moe::RouteStage>(nn::StageSite{"route", 0}, parameters_,
                                                   moe::RouteConfig{config, blocks_, shape}, state_);
    moe::RouteSlots of_route{
        .input = slots.input, .weights = slots.weights, .decision = slots.decision, .all_decisions = {slots.decision}};
    if (router->home_terms() > 0) of_route.home = kHome;
    if (router->wants_stand_ins()) of_route.stand_ins = kStandIns, slots.bare = kBare;
    route->connect(of_route);
    stages_.push_back(std::move(route));
    stages_.push_back(std::make_unique<moe::Dispatch>(nn::StageSite{"dispatch", 1}, *dispatcher_, slots, false));
    stages_.push_back(std::make_unique<moe::ExpertStage>(nn::StageSite{"experts", 2},
                                                         moe::Experts(parameters_, experts_, dropout), slots));
    stages_.push_back(std::make_unique<moe::Combine>(nn::StageSite{"combine", 3}, *dispatcher_, slots));
    if (router->wants_stand_ins()) add_stand_ins({slots.decision, kBare, kReturned});
    if (router->home_terms() == 0) return;
    output_ = kWithHome;
    stages_.push_back(std::make_unique<moe::HomeStage>(nn::StageSite{"home", 4}, parameters_, vectors_,
                                                       moe::HomeSlots{7, slots.input, kHome, kWithHome}));
  }
  // Weights of a local expert.
  Tensor down(int64_t expert) const { return parameters_.value(experts_[expert].down_DF); }
  Tensor gate_up(int64_t expert) const { return parameters_.value(experts_[expert].gate_up_2FD); }
  MoeLayer(const MoeLayer&) = delete;
  MoeLayer& operator=(const MoeLayer&) = delete;

  // The weight of the scores' first block.
  Tensor router() const { return parameters_.value(blocks_[0]); }
  Tensor vectors() const { return parameters_.value(*vectors_.learned); }
  moe::MethodState& state() { return state_.layers[0]; }
  // Leaves for autograd; of this rank's experts.
  ReferenceWeights weights() const {
    const auto leaf = [](const Tensor& t) { return t.detach().clone().requires_grad_(true); };
    const auto gathered = views([&](nn::ParameterId id) { return parameters_.value(id); });
    return {leaf(router()), leaf(gathered.gate_up_E2FD), leaf(gathered.down_EDF)};
  }

  void make_experts_identical() {
    for (size_t e = 1; e < experts_.size(); ++e) {
      parameters_.value(experts_[e].gate_up_2FD).copy_(parameters_.value(experts_[0].gate_up_2FD));
      parameters_.value(experts_[e].down_DF).copy_(parameters_.value(experts_[0].down_DF));
    }
  }

  // Collective. Without `dy` an evaluation.
  LayerResult run(const Batch& batch, const Tensor& x_TD, const Tensor& dy_TD) const {
    nn::Gradients gradients{at::zeros_like(parameters_.flat(false)), {}};
    for (int r = 0; r < ranks_; ++r) gradients.experts.push_back(at::zeros_like(parameters_.flat(true)));
    nn::Frame frame(batch, kSlots, static_cast<int>(stages_.size()), dy_TD.defined() ? &gradients : nullptr);
    frame.value(0) = x_TD;
    for (const auto& stage : stages_) stage->forward(frame);
    LayerResult result;
    result.y = frame.value(output_);
    result.rows = frame.value(4);
    if (frame.object(kOutputs).has_value()) result.outputs = frame.object_as<moe::OutputSums>(kOutputs);
    if (dy_TD.defined()) {
      frame.grad(output_) = dy_TD;
      for (auto stage = stages_.rbegin(); stage != stages_.rend(); ++stage) {
        (*stage)->backward_input(frame);
        (*stage)->backward_weight(frame);
      }
      result.dx = frame.grad(0);
      result.drows = frame.grad(4);
      result.dgates = frame.grad(5);
      if (!blocks_.empty()) result.drouter = gradients.view(parameters_[blocks_[0]]).clone();
      for (int r = 0; r < ranks_; ++r)
        result.dexperts.push_back(views([&](nn::ParameterId id) { return gradients.view(parameters_[id], r); }));
    }
    result.plan = frame.object_as<moe::DispatchPlan>(3);
    result.decision = frame.object_as<moe::Decision>(2);
    result.plan.routing = nullptr;  // it pointed into the frame
    return result;
  }

 private:
  void add_stand_ins(const moe::ReturnSlots& returned) {
    output_ = kWithStandIns;
    stages_.push_back(std::make_unique<moe::ReturnOutputs>(nn::StageSite{"return", 4}, *dispatcher_, returned));
    stages_.push_back(std::make_unique<moe::StandInStage>(
        nn::StageSite{"stand_ins", 5}, comm::Group(),
        moe::StandInSlots{7, returned.decision, kStandIns, {returned}, kWithStandIns}));
  }
  template <typename View>
  ReferenceWeights views(View view) const {
    std::vector<Tensor> gate_up, down;
    for (const auto& expert : experts_) {
      gate_up.push_back(view(expert.gate_up_2FD));
      down.push_back(view(expert.down_DF));
    }
    return {{}, at::stack(gate_up), at::stack(down)};
  }

  static constexpr nn::Slot kHome = 8, kWithHome = 9, kTokens = 10, kOutputs = 11, kStandIns = 12, kBare = 13,
                            kReturned = 14, kWithStandIns = 15, kSlots = 16;

  LayerSize size_;
  int ranks_;
  nn::Slot output_ = 7;
  moe::HomeVectors vectors_;
  nn::Parameters parameters_;
  std::vector<nn::ParameterId> blocks_;
  std::vector<moe::ExpertWeights> experts_;
  std::unique_ptr<moe::Dispatcher> dispatcher_;
  moe::ModelState state_;
  std::vector<std::unique_ptr<nn::Stage>> stages_;
};

}  // namespace conclave::testing
