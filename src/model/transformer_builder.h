// SPDX-License-Identifier: Apache-2.0
// Registers the parameters of a Transformer and wires its stages, top to bottom. Used once, by Transformer's
// constructor.
#pragma once

#include "model/initialisation.h"
#include "model/transformer.h"
#include "moe/dispatch_stages.h"
#include "moe/experts.h"
#include "moe/recurrent_stage.h"
#include "moe/stand_in_stages.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/norm.h"
#include "nn/token_exchange.h"

namespace conclave::model {

class TransformerBuilder {
 public:
  TransformerBuilder(Transformer& model, const TransformerConfig& config);
  void build();
  // Parameters to be drawn from a normal distribution that is cut off.
  const std::vector<nn::ParameterId>& truncated() const { return truncated_; }

 private:
  struct Name {
    std::string prefix;  // "layers.3."
    std::string operator()(const std::string& rest) const { return prefix + rest; }
  };
  // A weight [out, in], of which tensor-parallel ranks hold rows or columns where `spread` says so.
  enum class Spread { kWhole, kRows, kColumns };
  nn::ParameterId matrix(const nn::LogicalTensor& tensor, Draw draw, nn::ParameterKind kind);
  // Registers a parameter that is drawn so.
  nn::ParameterId drawn(nn::ParameterSpec spec, Draw draw);
  nn::ParameterId fused(const std::vector<nn::LogicalTensor>& parts, Draw draw, bool expert);
  nn::LogicalTensor tensor(const std::string& name, std::vector<int64_t> shape, Spread spread,
                           bool expert = false) const;
  nn::Norm norm(const std::string& name);
  nn::StageSite site(std::string name) const;
  template <typename S, typename... Args>
  S& stage(const std::string& name, Args&&... args);

  // Nothing but the input without tensor parallelism.
  nn::Slot exchange(const std::string& name, nn::TokenMoves moves, nn::Slot input);
  nn::Slot enter(const std::string& name, nn::Slot input);
  nn::Slot leave(const std::string& name, nn::Slot input);
  nn::Slot attention(const Name& name, nn::Slot input);
  nn::AttentionWeights attention_weights(const Name& name);
  nn::Slot shared_expert(const Name& name, const LayerShape& layer, nn::Slot input);
  // A dense FFN under a name of its own. `output_read`: some backward reads what it gives.
  nn::Slot dense(const std::string& name, int64_t width, nn::Slot input, bool output_read = false);
  struct Branches {
    nn::Slot input;        // of the dense FFN, after the block's norm
    nn::Slot block_input;  // before attention
  };
  // What an MoE layer adds to the residual stream.
  std::vector<nn::Slot> moe_sub_layer(const Name& name, const LayerShape& layer, Branches from);
  nn::Slot gated(const Name& name, nn::Slot input, nn::Slot routed, nn::Slot dense);
  nn::Slot with_home(const Name& name, const LayerShape& layer, const moe::RouteSlots& slots, nn::Slot routed);
  nn::Slot with_fallback(const Name& name, nn::Slot fallback, nn::Slot lost, nn::Slot routed);
  nn::Slot feed_forward_block(const Name& name, const LayerShape& layer, Branches from);
  // `sub_layer` between its norm and the residual sum, for either placement of the norm.
  template <typename F>
  nn::Slot residual(const Name& name, const std::string& part, nn::Slot input, F sub_layer);
  nn::FeedForwardWeights ffn_weights(const std::string& prefix, int64_t width);
  std::optional<nn::ParameterId> router_context(const Name& name);
  std::vector<nn::ParameterId> router_blocks(const Name& name, const std::vector<moe::ScoreBlock>& blocks);
  moe::RecurrentUnit recurrent_unit();
  // What a recurrent router reads instead of `input`; passes it on to the next MoE layer's.
  nn::Slot router_state(const Name& name, nn::Slot input);
  void route(const Name& name, const LayerShape& layer, moe::RouteSlots slots);
  // What experts gave, at home, where the router wants it: none or one.
  std::vector<moe::ReturnSlots> returned_outputs(const std::string& name, const moe::ExchangeSlots& slots);
  nn::Slot with_stand_ins(const Name& name, const moe::RouteSlots& slots, const std::vector<moe::ReturnSlots>& returned,
                          nn::Slot routed);
  struct RoutedSlots {
    nn::Slot output;
    moe::RouteSlots route;
  };
  RoutedSlots moe_branch(const Name& name, const LayerShape& layer, nn::Slot input);
  RoutedSlots merged_branch(const Name& name, const LayerShape& layer, nn::Slot input);
  RoutedSlots device_moe_branch(const Name& name, const LayerShape& layer, nn::Slot input);
  // Dispatch, experts and combine of what lies in `slots`; what was returned besides.
  std::vector<moe::ReturnSlots> exchanged(const Name& name, const moe::Experts& experts,
                                          const moe::ExchangeSlots& slots);
  void compressed_exchange(const Name& name, const moe::Experts& experts, const moe::ExchangeSlots& whole);
  // Returns what each chunk returned.
  std::vector<moe::ReturnSlots> chunked_exchange(const Name& name, const moe::Experts& experts,
                                                 const moe::ExchangeSlots& whole);
  bool resends() const;
  std::vector<moe::ExpertWeights> expert_weights(const Name& name, const LayerShape& layer);
  std::optional<moe::ExpertDropout> expert_dropout(const LayerShape& layer, int moe_layer) const;

  Transformer& m_;
  const TransformerConfig& config_;
  const ModelShape& shape_;
  const comm::Group& tp_;
  bool share_tokens_;  // outside tensor-parallel regions: sequence parallelism
  Initialisation init_;
  std::vector<nn::ParameterId> truncated_;
  // moe.router.share: model
  std::vector<nn::ParameterId> shared_router_;
  std::optional<nn::ParameterId> shared_context_;
  // moe.router.recurrent: one unit, and the state of the last MoE layer so far.
  std::optional<moe::RecurrentUnit> recurrent_unit_;
  std::optional<nn::Slot> router_state_;
};

template <typename S, typename... Args>
S& TransformerBuilder::stage(const std::string& name, Args&&... args) {
  auto made = std::make_unique<S>(site(name), std::forward<Args>(args)...);
  S& reference = *made;
  m_.stages_.push_back(std::move(made));
  return reference;
}

}  // namespace conclave::model
