// SPDX-License-Identifier: Apache-2.0
// Registers the parameters of a Transformer and wires its stages, top to bottom. Used once, by Transformer's
// constructor.
#pragma once

#include "model/transformer.h"
#include "moe/experts.h"
#include "nn/feed_forward.h"
#include "nn/norm.h"

namespace conclave::model {

class TransformerBuilder {
 public:
  TransformerBuilder(Transformer& model, const TransformerConfig& config);
  void build();

 private:
  struct Name {
    std::string prefix;  // "layers.3."
    std::string operator()(const std::string& rest) const { return prefix + rest; }
  };
  nn::ParameterId matrix(const std::string& name, int64_t out, int64_t in, double std, nn::ParameterKind kind);
  nn::ParameterId fused(const std::vector<nn::LogicalTensor>& parts, std::vector<int64_t> shape, double std,
                        bool expert);
  nn::Norm norm(const std::string& name, int64_t width);
  nn::StageSite site(std::string name) const;
  template <typename S, typename... Args>
  S& stage(const std::string& name, Args&&... args);

  nn::Slot attention(const Name& name, nn::Slot input);
  nn::Slot feed_forward_block(const Name& name, const LayerShape& layer, nn::Slot input);
  // `sub_layer` between its norm and the residual sum, for either placement of the norm.
  template <typename F>
  nn::Slot residual(const Name& name, const std::string& part, nn::Slot input, F sub_layer);
  nn::FeedForwardWeights ffn_weights(const std::string& prefix, int64_t width);
  nn::Slot moe_branch(const Name& name, const LayerShape& layer, nn::Slot input);
  std::vector<moe::ExpertWeights> expert_weights(const Name& name, const LayerShape& layer);

  Transformer& m_;
  const TransformerConfig& config_;
  const ModelShape& shape_;
  double std_, residual_std_;
};

}  // namespace conclave::model
