// SPDX-License-Identifier: Apache-2.0
// The wiring of routers: what they read, their weights, and what stands in for experts that nobody chose.
#include <cmath>

#include "model/transformer_builder.h"
#include "moe/device_route.h"
#include "moe/recurrent_stage.h"

namespace conclave::model {

using nn::ParameterKind;
using nn::Slot;

namespace {

// Sums over so many numbers of order one are of order one.
Draw even_draw(int64_t inputs) { return {1 / std::sqrt(static_cast<double>(inputs)), 1}; }

}  // namespace

std::vector<nn::ParameterId> TransformerBuilder::router_blocks(const Name& name,
                                                               const std::vector<moe::ScoreBlock>& blocks) {
  const moe::RouterConfig& router = config_.moe.router;
  const bool one_for_all = router.share == "model";
  if (one_for_all && !shared_router_.empty()) return shared_router_;
  std::vector<nn::ParameterId> ids;
  for (const auto& block : blocks) {
    const std::string rest = "moe." + block.name + ".weight";
    const int64_t inputs = router.recurrent ? router.recurrent->hidden_size : (router.context ? 2 : 1) * shape_.hidden;
    Draw draw = router.recurrent ? even_draw(inputs) : init_.matrix(inputs);
    // Who never learns chooses by what was drawn.
    if (block.init_std && !router.frozen) draw.std = *block.init_std, draw.truncated = false;
    const auto weight = tensor(one_for_all ? rest : name(rest), {block.columns, inputs}, Spread::kWhole);
    ids.push_back(drawn({.parts = {weight},
                         .shape = weight.shape,
                         .kind = ParameterKind::kRouter,
                         .partial = tp_.size() > 1,
                         .frozen = router.frozen},
                        draw));
  }
  if (one_for_all) shared_router_ = ids;
  return ids;
}

std::optional<nn::ParameterId> TransformerBuilder::router_context(const Name& name) {
  const moe::RouterConfig& router = config_.moe.router;
  if (!router.context) return std::nullopt;
  const bool one_for_all = router.share == "model";
  if (one_for_all && shared_context_) return shared_context_;
  const std::string rest = "moe.router.context.rate";
  const auto rates = tensor(one_for_all ? rest : name(rest), {shape_.hidden}, Spread::kWhole);
  // Zero: half of what was, half of what is.
  const auto id = m_.parameters_.add({.parts = {rates},
                                      .shape = rates.shape,
                                      .kind = ParameterKind::kBias,
                                      .partial = tp_.size() > 1,
                                      .frozen = router.frozen});
  if (one_for_all) shared_context_ = id;
  return id;
}

moe::RecurrentUnit TransformerBuilder::recurrent_unit() {
  const int64_t H = config_.moe.router.recurrent->hidden_size;
  const auto add = [&](const char* what, std::vector<int64_t> shape, ParameterKind kind, double std) {
    return m_.parameters_.add({.parts = {tensor(std::string("moe.router.unit.") + what, shape, Spread::kWhole)},
                               .shape = shape,
                               .kind = kind,
                               .partial = tp_.size() > 1,
                               .frozen = config_.moe.router.frozen,
                               .init_std = std});
  };
  const double std = even_draw(H).std;
  return {.input_3HH = add("input.weight", {3 * H, H}, ParameterKind::kRouter, std),
          .state_3HH = add("state.weight", {3 * H, H}, ParameterKind::kRouter, std),
          .input_bias_3H = add("input.bias", {3 * H}, ParameterKind::kBias, 0),
          .state_bias_3H = add("state.bias", {3 * H}, ParameterKind::kBias, 0)};
}

Slot TransformerBuilder::router_state(const Name& name, Slot input) {
  const moe::RouterConfig& router = config_.moe.router;
  const auto projection =
      tensor(name("moe.router.projection.weight"), {router.recurrent->hidden_size, shape_.hidden}, Spread::kWhole);
  if (!recurrent_unit_) recurrent_unit_ = recurrent_unit();
  moe::RecurrentWeights weights{.unit = *recurrent_unit_};
  weights.projection_HD = m_.parameters_.add({.parts = {projection},
                                              .shape = projection.shape,
                                              .kind = ParameterKind::kRouter,
                                              .partial = tp_.size() > 1,
                                              .frozen = router.frozen,
                                              .init_std = even_draw(shape_.hidden).std});
  weights.adds = m_.routers_.size() + 1 < m_.moe_layers_.size();
  const Slot state = m_.slots_.add(name("moe.router.state"));
  stage<moe::RecurrentStage>(name("moe.router.state"), m_.parameters_, weights,
                             moe::RecurrentSlots{input, router_state_, state});
  router_state_ = state;
  return state;
}

void TransformerBuilder::route(const Name& name, const LayerShape& layer, moe::RouteSlots slots) {
  slots.layer = static_cast<int>(m_.routers_.size());
  moe::RouteConfig config{.moe = config_.moe,
                          .shape = {.experts = layer.num_experts,
                                    .top_k = layer.top_k,
                                    .vocab = shape_.vocab,
                                    .seed = config_.seed,
                                    .layer = slots.layer,
                                    .hidden = shape_.hidden},
                          .observer = config_.choices,
                          .tp = tp_};
  config.moe.router.routed_scaling_factor *= init_.weight_scale(config_.moe, layer);
  const auto router = moe::Router::make(config.moe.router, config.shape);
  config.blocks = router_blocks(name, router->blocks(config.shape));
  config.context = router_context(name);
  // Backward begins with the last layer.
  config.adds = config_.moe.router.share == "model" && slots.layer + 1 < std::ssize(m_.moe_layers_);
  router->declare(config.shape, m_.state_.layers[slots.layer]);
  if (config_.moe.router.recurrent) slots.input = router_state(name, slots.input);
  const auto add = [&](auto& made) {
    made.connect(std::move(slots));
    m_.routers_.push_back(&made.router());
  };
  if (config_.device) {
    add(stage<moe::DeviceRouteStage>(name("moe.route"), m_.parameters_, config, *m_.device_state_));
  } else {
    add(stage<moe::RouteStage>(name("moe.route"), m_.parameters_, config, m_.state_));
  }
}

std::vector<moe::ReturnSlots> TransformerBuilder::returned_outputs(const std::string& name,
                                                                   const moe::ExchangeSlots& slots) {
  if (!slots.bare) return {};
  const moe::ReturnSlots returned{slots.decision, *slots.bare, m_.slots_.add(name)};
  stage<moe::ReturnOutputs>(name, *m_.dispatcher_, returned);
  return {returned};
}

Slot TransformerBuilder::with_stand_ins(const Name& name, const moe::RouteSlots& slots,
                                        const std::vector<moe::ReturnSlots>& returned, Slot routed) {
  if (!slots.stand_ins) return routed;
  const Slot output = m_.slots_.add(name("moe.stand_ins.output"));
  stage<moe::StandInStage>(name("moe.stand_ins"), tp_,
                           moe::StandInSlots{routed, slots.decision, *slots.stand_ins, returned, output});
  return output;
}

}  // namespace conclave::model
