// SPDX-License-Identifier: Apache-2.0
// The wiring of MoE layers.
#include <fmt/format.h>

#include "core/error.h"
#include "model/transformer_builder.h"
#include "moe/chunk_stages.h"
#include "moe/device_exchange_stages.h"
#include "moe/dispatch_stages.h"

namespace conclave::model {

using nn::ParameterKind;
using nn::Slot;

std::vector<moe::ExpertWeights> TransformerBuilder::expert_weights(const Name& name, const LayerShape& layer) {
  const comm::Group& ep = m_.mesh_.ep();
  const int64_t D = shape_.hidden, F = layer.expert_width, ranks = ep.size();
  check(layer.num_experts % ranks == 0, "experts must divide over parallel.ep");
  const int64_t local = layer.num_experts / ranks, first = local * ep.rank();
  std::vector<moe::ExpertWeights> weights(local);
  const auto part = [&](int64_t e, const char* which, std::vector<int64_t> shape, Spread spread) {
    return tensor(name(fmt::format("moe.experts.{}.{}.weight", first + e, which)), std::move(shape), spread, true);
  };
  for (int64_t e = 0; e < local; ++e) {
    weights[e].gate_up_2FD =
        fused({part(e, "gate", {F, D}, Spread::kRows), part(e, "up", {F, D}, Spread::kRows)}, std_, true);
  }
  for (int64_t e = 0; e < local; ++e)
    weights[e].down_DF = fused({part(e, "down", {D, F}, Spread::kColumns)}, residual_std_, true);
  return weights;
}

std::vector<nn::ParameterId> TransformerBuilder::router_blocks(const Name& name,
                                                               const std::vector<moe::ScoreBlock>& blocks) {
  const moe::RouterConfig& router = config_.moe.router;
  const bool one_for_all = router.share == "model";
  if (one_for_all && !shared_router_.empty()) return shared_router_;
  std::vector<nn::ParameterId> ids;
  for (const auto& block : blocks) {
    const std::string rest = "moe." + block.name + ".weight";
    const auto weight = tensor(one_for_all ? rest : name(rest), {block.columns, shape_.hidden}, Spread::kWhole);
    ids.push_back(m_.parameters_.add({.parts = {weight},
                                      .shape = weight.shape,
                                      .kind = ParameterKind::kRouter,
                                      .partial = tp_.size() > 1,
                                      .frozen = router.frozen,
                                      // Who never learns chooses by what was drawn.
                                      .init_std = router.frozen ? std_ : block.init_std.value_or(std_)}));
  }
  if (one_for_all) shared_router_ = ids;
  return ids;
}

void TransformerBuilder::route(const Name& name, const LayerShape& layer, moe::RouteSlots slots) {
  slots.layer = static_cast<int>(m_.routers_.size());
  moe::RouteConfig config{.moe = config_.moe,
                          .shape = {.experts = layer.num_experts,
                                    .top_k = layer.top_k,
                                    .vocab = shape_.vocab,
                                    .seed = config_.seed,
                                    .layer = slots.layer},
                          .observer = config_.choices,
                          .tp = tp_};
  const auto router = moe::Router::make(config_.moe.router, config.shape);
  config.blocks = router_blocks(name, router->blocks(config.shape));
  // Backward begins with the last layer.
  config.adds = config_.moe.router.share == "model" && slots.layer + 1 < std::ssize(m_.moe_layers_);
  router->declare(config.shape, m_.state_.layers[slots.layer]);
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

Slot TransformerBuilder::moe_branch(const Name& name, const LayerShape& layer, Slot input) {
  const auto slot = [&](const char* what) { return m_.slots_.add(name(std::string("moe.") + what)); };
  if (config_.device) return device_moe_branch(name, layer, input);
  const Slot decision = m_.decisions_[m_.routers_.size()];
  const moe::ExchangeSlots slots{.input = input,
                                 .weights = slot("weights"),
                                 .decision = decision,
                                 .plan = slot("plan"),
                                 .rows = slot("rows"),
                                 .gates = slot("gates"),
                                 .results = slot("results"),
                                 .output = slot("output")};
  route(name, layer, {.input = input, .weights = slots.weights, .decision = decision, .all_decisions = m_.decisions_});
  const moe::Experts experts(m_.parameters_, expert_weights(name, layer));
  if (config_.chunks > 1) {
    chunked_exchange(name, experts, slots);
    return slots.output;
  }
  stage<moe::Dispatch>(name("moe.dispatch"), *m_.dispatcher_, slots, resends());
  stage<moe::ExpertStage>(name("moe.experts"), experts, slots);
  stage<moe::Combine>(name("moe.combine"), *m_.dispatcher_, slots);
  return slots.output;
}

Slot TransformerBuilder::device_moe_branch(const Name& name, const LayerShape& layer, Slot input) {
  check(m_.mesh_.etp().size() * tp_.size() == 1 && config_.chunks == 1, "the device path spreads no tensor over ranks");
  check(config_.choices == nullptr, "nobody sees or replaces the choices of the device path");
  const auto slot = [&](const char* what) { return m_.slots_.add(name(std::string("moe.") + what)); };
  const Slot weights = slot("weights"), decision = m_.decisions_[m_.routers_.size()];
  route(name, layer, {.input = input, .weights = weights, .decision = decision, .all_decisions = m_.decisions_});
  const auto experts = expert_weights(name, layer);
  const comm::Group& ep = m_.mesh_.ep();
  if (ep.size() == 1) {
    const Slot output = slot("output");
    stage<moe::DeviceExpertStage>(name("moe.experts"), m_.parameters_, experts,
                                  moe::DeviceExpertSlots{input, weights, decision, output});
    return output;
  }
  const moe::DeviceExchangeSlots slots{.input = input,
                                       .weights = weights,
                                       .decision = decision,
                                       .plan = slot("plan"),
                                       .rows = slot("rows"),
                                       .gates = slot("gates"),
                                       .results = slot("results"),
                                       .output = slot("output")};
  stage<moe::DeviceDispatch>(name("moe.dispatch"), ep, slots, resends());
  stage<moe::DeviceRankExperts>(name("moe.experts"), m_.parameters_, experts, slots);
  stage<moe::DeviceCombine>(name("moe.combine"), ep, slots);
  return slots.output;
}

bool TransformerBuilder::resends() const {
  return m_.mesh_.ep().size() * m_.mesh_.etp().size() == 1 ||
         config_.moe.dispatch.backward_rows == moe::BackwardRows::kResend;
}

// Every chunk's dispatch stands before the first one's experts: all of them may be under way at a time.
void TransformerBuilder::chunked_exchange(const Name& name, const moe::Experts& experts,
                                          const moe::ExchangeSlots& whole) {
  std::vector<moe::ExchangeSlots> chunks;
  moe::CutTokens::Slots cut{
      .input = whole.input, .weights = whole.weights, .decision = whole.decision, .pairs = whole.plan};
  std::vector<Slot> outputs;
  for (int64_t c = 0; c < config_.chunks; ++c) {
    const auto slot = [&](const char* what) { return m_.slots_.add(name(fmt::format("moe.{}.{}", what, c))); };
    chunks.push_back({.input = slot("input"),
                      .weights = slot("weights"),
                      .decision = slot("decision"),
                      .plan = slot("plan"),
                      .rows = slot("rows"),
                      .gates = slot("gates"),
                      .results = slot("results"),
                      .output = slot("output"),
                      .planned = true});
    const moe::ExchangeSlots& chunk = chunks.back();
    cut.chunks.push_back({chunk.input, chunk.weights, chunk.decision, chunk.plan});
    outputs.push_back(chunks.back().output);
  }
  const auto chunk_name = [&](const char* what, size_t c) { return name(fmt::format("moe.{}.{}", what, c)); };
  stage<moe::CutTokens>(name("moe.cut"), *m_.dispatcher_, cut);
  for (size_t c = 0; c < chunks.size(); ++c)
    stage<moe::Dispatch>(chunk_name("dispatch", c), *m_.dispatcher_, chunks[c], resends());
  for (size_t c = 0; c < chunks.size(); ++c) {
    // Backward begins with the last one.
    const bool adds = c + 1 < chunks.size();
    stage<moe::ExpertStage>(chunk_name("experts", c), experts, chunks[c], adds);
    stage<moe::Combine>(chunk_name("combine", c), *m_.dispatcher_, chunks[c]);
  }
  stage<moe::JoinTokens>(name("moe.join"), outputs, whole.output);
}

}  // namespace conclave::model
