// SPDX-License-Identifier: Apache-2.0
// One mixture-of-experts layer made of the real stages (route, dispatch, experts, combine), outside a transformer, so
// that tests choose its input and the gradient of its output. Weights depend on the seed alone, on every layout.
#pragma once

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "comm/group.h"
#include "kernels/tensor_checks.h"
#include "moe/compression_stages.h"
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
  moe::RowBuckets buckets;  // where rows are compressed
};

class MoeLayer {
 public:
  MoeLayer(const moe::MoeConfig& config, LayerSize size, at::ScalarType dtype, const comm::Group& ep = {},
           uint64_t seed = 1)
      : size_(size), ranks_(ep.size()), dispatcher_(moe::Dispatcher::make(config.dispatch, ep)) {
    const int64_t E = size.experts, D = size.width, local = E / ep.size();
    const auto* each = config.expert_hidden_size ? config.expert_hidden_size->each() : nullptr;
    widths_ = each ? *each : std::vector<int64_t>(E, size.expert_width);
    check(std::ssize(widths_) == E, "a width for each expert");
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
      experts_.push_back({expert("gate_up", {2 * widths_[e], D}), expert("down", {D, widths_[e]})});
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
          moe::DropoutSite{.seed = seed, .experts = E, .first_expert = local * ep.rank(), .widest = widest()});
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
    const auto& compression = config.dispatch.compression;
    if (compression) {
      add<moe::Compress>("compress", moe::Compressor::make(*compression, {.seed = seed, .width = D}), kCompression);
      slots.outputs.reset();
      slots.input = kCompression.means, slots.weights = kCompression.ones;
      slots.decision = kCompression.bucket_decision, slots.output = kCompression.results;
    }
    add<moe::Dispatch>("dispatch", *dispatcher_, slots, false);
    add<moe::ExpertStage>("experts", moe::Experts(parameters_, experts_, dropout), slots);
    add<moe::Combine>("combine", *dispatcher_, slots);
    if (compression) add<moe::Expand>("expand", kCompression);
    if (router->wants_stand_ins()) add_stand_ins({2, kBare, kReturned});
    if (router->home_terms() == 0) return;
    output_ = kWithHome;
    add<moe::HomeStage>("home", parameters_, vectors_, moe::HomeSlots{7, 0, kHome, kWithHome});
  }
  // Weights of a local expert.
  Tensor down(int64_t expert) const { return parameters_.value(experts_[expert].down_DF); }
  Tensor gate_up(int64_t expert) const { return parameters_.value(experts_[expert].gate_up_2FD); }
  MoeLayer(const MoeLayer&) = delete;
  MoeLayer& operator=(const MoeLayer&) = delete;

  int64_t widest() const { return *std::max_element(widths_.begin(), widths_.end()); }
  // The weight of the scores' first block.
  Tensor router() const { return parameters_.value(blocks_[0]); }
  Tensor vectors() const { return parameters_.value(*vectors_.learned); }
  moe::MethodState& state() { return state_.layers[0]; }
  // Leaves for autograd; of this rank's experts. Of different widths, narrow ones are filled up with zeros, which is
  // the same function.
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
    if (frame.object(kCompression.buckets).has_value())
      result.buckets = frame.object_as<moe::RowBuckets>(kCompression.buckets);
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
    add<moe::ReturnOutputs>("return", *dispatcher_, returned);
    add<moe::StandInStage>("stand_ins", comm::Group(),
                           moe::StandInSlots{7, returned.decision, kStandIns, {returned}, kWithStandIns});
  }
  template <typename View>
  ReferenceWeights views(View view) const {
    std::vector<Tensor> gate_up, down;
    for (const auto& expert : experts_) {
      const Tensor halves = view(expert.gate_up_2FD), weight_DF = view(expert.down_DF);
      const int64_t D = weight_DF.size(0), F = weight_DF.size(1), missing = widest() - F;
      gate_up.push_back(at::constant_pad_nd(halves.view({2, F, D}), {0, 0, 0, missing}).view({-1, D}));
      down.push_back(at::constant_pad_nd(weight_DF, {0, missing}));
    }
    return {{}, at::stack(gate_up), at::stack(down)};
  }

  template <typename S, typename... Args>
  void add(const char* name, Args&&... args) {
    stages_.push_back(
        std::make_unique<S>(nn::StageSite{name, static_cast<int>(stages_.size())}, std::forward<Args>(args)...));
  }

  static constexpr nn::Slot kHome = 8, kWithHome = 9, kTokens = 10, kOutputs = 11, kStandIns = 17, kBare = 18,
                            kReturned = 19, kWithStandIns = 20, kSlots = 21;
  static constexpr moe::CompressionSlots kCompression{.input = 0,
                                                      .weights = 1,
                                                      .decision = 2,
                                                      .buckets = 12,
                                                      .means = 13,
                                                      .ones = 14,
                                                      .bucket_decision = 15,
                                                      .results = 16,
                                                      .output = 7};

  LayerSize size_;
  std::vector<int64_t> widths_;  // of all experts of the layer
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
