// SPDX-License-Identifier: Apache-2.0
// The wiring of MoE layers.
#include <fmt/format.h>

#include "core/error.h"
#include "model/transformer_builder.h"
#include "moe/chunk_stages.h"
#include "moe/compression_stages.h"
#include "moe/device_exchange_stages.h"
#include "moe/dispatch_stages.h"
#include "moe/fallback_stage.h"
#include "moe/home_stage.h"
#include "moe/soft_merge.h"
#include "nn/branch_gate.h"
#include "nn/weighted_sum.h"

namespace conclave::model {

using nn::ParameterKind;
using nn::Slot;

std::vector<moe::ExpertWeights> TransformerBuilder::expert_weights(const Name& name, const LayerShape& layer) {
  const comm::Group& ep = m_.mesh_.ep();
  const int64_t D = shape_.hidden, ranks = ep.size();
  check(layer.num_experts % ranks == 0, "experts must divide over parallel.ep");
  const int64_t local = layer.num_experts / ranks, first = local * ep.rank();
  std::vector<moe::ExpertWeights> weights(local);
  const auto part = [&](int64_t e, const char* which, std::vector<int64_t> shape, Spread spread) {
    return tensor(name(fmt::format("moe.experts.{}.{}.weight", first + e, which)), std::move(shape), spread, true);
  };
  for (int64_t e = 0; e < local; ++e) {
    const int64_t F = layer.width_of(first + e);
    weights[e].gate_up_2FD =
        fused({part(e, "gate", {F, D}, Spread::kRows), part(e, "up", {F, D}, Spread::kRows)}, init_.matrix(D), true);
  }
  for (int64_t e = 0; e < local; ++e) {
    const int64_t F = layer.width_of(first + e);
    weights[e].down_DF = fused({part(e, "down", {D, F}, Spread::kColumns)}, init_.residual(F), true);
  }
  return weights;
}

std::optional<moe::ExpertDropout> TransformerBuilder::expert_dropout(const LayerShape& layer, int moe_layer) const {
  if (config_.moe.experts.dropout == 0) return std::nullopt;
  const comm::Group &ep = m_.mesh_.ep(), &etp = m_.mesh_.etp();
  const int64_t local = layer.num_experts / ep.size();
  moe::DropoutSite site{.seed = config_.seed,
                        .layer = moe_layer,
                        .experts = layer.num_experts,
                        .first_expert = local * ep.rank(),
                        .widest = layer.widest(1)};
  for (int64_t e = 0; e < local; ++e)
    site.first_columns.push_back(nn::slice_of(0, layer.width_of(site.first_expert + e), etp.rank(), etp.size()).begin);
  return moe::ExpertDropout(config_.moe.experts.dropout, std::move(site));
}

Slot TransformerBuilder::gated(const Name& name, Slot input, Slot routed, Slot dense) {
  // The stream's tokens are this rank's own or everybody's, like those of a norm.
  const auto weight = drawn({.parts = {{name("branch_gate.weight"), {2, shape_.hidden}}},
                             .shape = {2, shape_.hidden},
                             .partial = share_tokens_},
                            init_.matrix(shape_.hidden));
  const auto bias = m_.parameters_.add({.parts = {{name("branch_gate.bias"), {2}}},
                                        .shape = {2},
                                        .kind = ParameterKind::kBias,
                                        .partial = share_tokens_});
  const Slot sum = m_.slots_.add(name("branch_gate"));
  stage<nn::BranchGate>(name("branch_gate"), m_.parameters_, nn::BranchGateWeights{weight, bias},
                        nn::BranchGateSlots{input, routed, dense, sum});
  return sum;
}

Slot TransformerBuilder::with_home(const Name& name, const LayerShape& layer, const moe::RouteSlots& slots,
                                   Slot routed) {
  if (!slots.home) return routed;
  moe::HomeVectors vectors;
  if (layer.home_kept) {
    vectors = {.state = &m_.state_.layers[m_.routers_.size() - 1],
               .name = std::string(m_.routers_.back()->kept_vectors())};
  } else if (layer.home_vectors() > 0) {
    const std::vector<int64_t> shape{layer.home_vectors(), shape_.hidden};
    vectors.learned = m_.parameters_.add({.parts = {{name("moe.home.vectors"), shape}},
                                          .shape = shape,
                                          .partial = tp_.size() > 1,
                                          .init_std = init_.embedding().std});
  }
  const Slot output = m_.slots_.add(name("moe.home.output"));
  stage<moe::HomeStage>(name("moe.home"), m_.parameters_, vectors,
                        moe::HomeSlots{routed, slots.input, *slots.home, output});
  return output;
}

Slot TransformerBuilder::with_fallback(const Name& name, Slot fallback, Slot lost, Slot routed) {
  const Slot own =
      tp_.size() > 1 && !share_tokens_ ? exchange(name("moe.fallback.share"), nn::kShareTokens, fallback) : fallback;
  const Slot output = m_.slots_.add(name("moe.fallback.sum"));
  stage<moe::FallbackStage>(name("moe.fallback.sum"), moe::FallbackSlots{routed, own, lost, output});
  return output;
}

std::vector<Slot> TransformerBuilder::moe_sub_layer(const Name& name, const LayerShape& layer, Branches from) {
  Slot x = from.input;
  if (layer.residual_dense) {
    x = m_.slots_.add(name("moe_norm"));
    stage<nn::NormStage>(name("moe_norm"), norm(name("moe_norm")), from.block_input, x);
  }
  // What stands beside the experts comes before the exchange, so that an executor may run it inside its window.
  std::optional<Slot> beside, shared, fallback;
  if (layer.ffn_width > 0) beside = dense(name("ffn"), layer.ffn_width, from.input, layer.branch_gate);
  if (layer.shared_width > 0) shared = shared_expert(name, layer, x);
  if (layer.fallback_width > 0) fallback = dense(name("moe.fallback"), layer.fallback_width, x, true);
  // Experts work on this rank's tokens, whether or not the stream is shared out.
  const bool all_here = tp_.size() > 1 && !share_tokens_;
  const Slot own = all_here ? exchange(name("moe.share"), nn::kShareTokens, x) : x;
  const auto [output, route] = moe_branch(name, layer, own);
  Slot routed = with_home(name, layer, route, output);
  if (fallback) routed = with_fallback(name, *fallback, *route.lost, routed);
  if (all_here) routed = exchange(name("moe.join"), nn::kJoinTokens, routed);
  if (layer.branch_gate) {
    routed = gated(name, x, routed, *beside);
    beside.reset();
  }
  if (shared && config_.moe.shared_merge == "mean") {
    const Slot mean = m_.slots_.add(name("moe.mean"));
    const auto k = static_cast<double>(layer.top_k);
    stage<nn::WeightedSum>(name("moe.mean"),
                           std::vector<nn::WeightedSum::Term>{{routed, k / (k + 1)}, {*shared, 1 / (k + 1)}}, mean);
    routed = mean;
    shared.reset();
  }
  std::vector<Slot> branches{routed};
  for (const auto& other : {shared, beside})
    if (other) branches.push_back(*other);
  return branches;
}

TransformerBuilder::RoutedSlots TransformerBuilder::moe_branch(const Name& name, const LayerShape& layer, Slot input) {
  const auto slot = [&](const char* what) { return m_.slots_.add(name(std::string("moe.") + what)); };
  if (layer.merges()) return merged_branch(name, layer, input);
  if (config_.device) return device_moe_branch(name, layer, input);
  const Slot decision = m_.decisions_[m_.routers_.size()];
  const auto dropout = expert_dropout(layer, static_cast<int>(m_.routers_.size()));
  moe::ExchangeSlots slots{.input = input,
                           .weights = slot("weights"),
                           .decision = decision,
                           .plan = slot("plan"),
                           .rows = slot("rows"),
                           .gates = slot("gates"),
                           .results = slot("results"),
                           .output = slot("output")};
  if (dropout) slots.tokens = slot("tokens");
  moe::RouteSlots of_route{
      .input = input, .weights = slots.weights, .decision = decision, .all_decisions = m_.decisions_};
  if (layer.home_terms > 0) of_route.home = slot("home");
  if (layer.fallback_width > 0) of_route.lost = slot("lost");
  if (layer.outputs_kept) of_route.stand_ins = slot("stand_ins");
  route(name, layer, of_route);
  if (m_.routers_.back()->reads_outputs()) slots.outputs = slot("outputs");
  if (layer.outputs_kept) slots.bare = slot("bare");
  m_.outputs_.push_back(slots.outputs);
  const moe::Experts experts(m_.parameters_, expert_weights(name, layer), dropout);
  m_.bucket_decisions_.emplace_back();
  std::vector<moe::ReturnSlots> returned;
  if (layer.compressed) {
    compressed_exchange(name, experts, slots);
  } else {
    returned = exchanged(name, experts, slots);
  }
  return {with_stand_ins(name, of_route, returned, slots.output), of_route};
}

std::vector<moe::ReturnSlots> TransformerBuilder::exchanged(const Name& name, const moe::Experts& experts,
                                                            const moe::ExchangeSlots& slots) {
  if (config_.chunks > 1) return chunked_exchange(name, experts, slots);
  stage<moe::Dispatch>(name("moe.dispatch"), *m_.dispatcher_, slots, resends());
  stage<moe::ExpertStage>(name("moe.experts"), experts, slots);
  stage<moe::Combine>(name("moe.combine"), *m_.dispatcher_, slots);
  return returned_outputs(name("moe.return"), slots);
}

void TransformerBuilder::compressed_exchange(const Name& name, const moe::Experts& experts,
                                             const moe::ExchangeSlots& whole) {
  const auto slot = [&](const char* what) { return m_.slots_.add(name(std::string("moe.buckets.") + what)); };
  const moe::CompressionSlots slots{.input = whole.input,
                                    .weights = whole.weights,
                                    .decision = whole.decision,
                                    .buckets = slot("pairs"),
                                    .means = slot("means"),
                                    .ones = slot("ones"),
                                    .bucket_decision = slot("decision"),
                                    .results = slot("results"),
                                    .output = whole.output};
  check(!whole.tokens && !whole.outputs && !whole.bare,
        "rows of several tokens have no token's id and are no token's output");
  m_.bucket_decisions_.back() = slots.bucket_decision;
  const moe::CompressionSite site{
      .seed = config_.seed, .layer = static_cast<int>(m_.routers_.size()) - 1, .width = shape_.hidden};
  stage<moe::Compress>(name("moe.compress"), moe::Compressor::make(*config_.moe.dispatch.compression, site), slots);
  moe::ExchangeSlots inner = whole;
  inner.input = slots.means, inner.weights = slots.ones, inner.decision = slots.bucket_decision;
  inner.output = slots.results;
  exchanged(name, experts, inner);
  stage<moe::Expand>(name("moe.expand"), slots);
}

TransformerBuilder::RoutedSlots TransformerBuilder::merged_branch(const Name& name, const LayerShape& layer,
                                                                  Slot input) {
  check(m_.mesh_.ep().size() * m_.mesh_.etp().size() * tp_.size() == 1, "every rank merges all experts");
  const int64_t D = shape_.hidden, F = layer.expert_width;
  std::vector<nn::LogicalTensor> gate_up, down;
  for (int64_t e = 0; e < layer.num_experts; ++e) {
    const auto part = [&](const char* which) { return name(fmt::format("moe.experts.{}.{}.weight", e, which)); };
    gate_up.push_back({part("gate"), {F, D}});
    gate_up.push_back({part("up"), {F, D}});
    down.push_back({part("down"), {D, F}});
  }
  const auto router = router_blocks(name, {{"router", layer.num_experts, {}}});
  const moe::SoftMergeWeights weights{.router_ED = router[0],
                                      .gate_up_E2FD = fused(gate_up, init_.matrix(D), true),
                                      .down_EDF = fused(down, init_.residual(F), true)};
  const moe::LoryConfig lory = config_.moe.router.lory.value_or(moe::LoryConfig());
  const moe::SoftMergeConfig config{
      .experts = layer.num_experts, .segment = layer.merge_segment, .own_first = lory.first == moe::FirstSegment::kOwn};
  const Slot output = m_.slots_.add(name("moe.output"));
  stage<moe::SoftMerge>(name("moe.merge"), m_.parameters_, config, weights, nn::Wire{input, output});
  return {output, {}};
}

TransformerBuilder::RoutedSlots TransformerBuilder::device_moe_branch(const Name& name, const LayerShape& layer,
                                                                      Slot input) {
  check(m_.mesh_.etp().size() * tp_.size() == 1 && config_.chunks == 1, "the device path spreads no tensor over ranks");
  check(config_.choices == nullptr, "nobody sees or replaces the choices of the device path");
  const auto slot = [&](const char* what) { return m_.slots_.add(name(std::string("moe.") + what)); };
  const Slot weights = slot("weights"), decision = m_.decisions_[m_.routers_.size()];
  m_.outputs_.emplace_back();
  m_.bucket_decisions_.emplace_back();
  route(name, layer, {.input = input, .weights = weights, .decision = decision, .all_decisions = m_.decisions_});
  const auto experts = expert_weights(name, layer);
  const comm::Group& ep = m_.mesh_.ep();
  if (ep.size() == 1) {
    const Slot output = slot("output");
    stage<moe::DeviceExpertStage>(name("moe.experts"), m_.parameters_, experts,
                                  moe::DeviceExpertSlots{input, weights, decision, output});
    return {output, {}};
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
  return {slots.output, {}};
}

bool TransformerBuilder::resends() const {
  return m_.mesh_.ep().size() * m_.mesh_.etp().size() == 1 ||
         config_.moe.dispatch.backward_rows == moe::BackwardRows::kResend;
}

// Every chunk's dispatch stands before the first one's experts: all of them may be under way at a time.
std::vector<moe::ReturnSlots> TransformerBuilder::chunked_exchange(const Name& name, const moe::Experts& experts,
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
                      .outputs = whole.outputs,
                      .planned = true});
    if (whole.tokens) chunks.back().tokens = slot("tokens");
    if (whole.bare) chunks.back().bare = slot("bare");
    const moe::ExchangeSlots& chunk = chunks.back();
    cut.chunks.push_back({chunk.input, chunk.weights, chunk.decision, chunk.plan});
    outputs.push_back(chunks.back().output);
  }
  std::vector<moe::ReturnSlots> returned;
  const auto chunk_name = [&](const char* what, size_t c) { return name(fmt::format("moe.{}.{}", what, c)); };
  stage<moe::CutTokens>(name("moe.cut"), *m_.dispatcher_, cut);
  for (size_t c = 0; c < chunks.size(); ++c)
    stage<moe::Dispatch>(chunk_name("dispatch", c), *m_.dispatcher_, chunks[c], resends());
  for (size_t c = 0; c < chunks.size(); ++c) {
    // Backward begins with the last one.
    const bool adds = c + 1 < chunks.size();
    stage<moe::ExpertStage>(chunk_name("experts", c), experts, chunks[c], adds);
    stage<moe::Combine>(chunk_name("combine", c), *m_.dispatcher_, chunks[c]);
    for (const auto& part : returned_outputs(chunk_name("return", c), chunks[c])) returned.push_back(part);
  }
  stage<moe::JoinTokens>(name("moe.join"), outputs, whole.output);
  return returned;
}

}  // namespace conclave::model
