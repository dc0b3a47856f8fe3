// SPDX-License-Identifier: Apache-2.0
#include "model/transformer_builder.h"

#include <fmt/format.h>

#include "core/error.h"
#include "nn/embedding.h"
#include "nn/loss.h"
#include "nn/residual.h"

namespace conclave::model {

using nn::ParameterKind;
using nn::Slot;

TransformerBuilder::TransformerBuilder(Transformer& model, const TransformerConfig& config)
    : m_(model),
      config_(config),
      shape_(model.shape_),
      tp_(model.mesh_.tp()),
      share_tokens_(config.sequence_parallel && tp_.size() > 1),
      init_(config.model, std::ssize(shape_.layers)) {}

nn::LogicalTensor TransformerBuilder::tensor(const std::string& name, std::vector<int64_t> shape, Spread spread,
                                             bool expert) const {
  const comm::Group& ranks = expert ? m_.mesh_.etp() : tp_;
  nn::LogicalTensor tensor{name, std::move(shape)};
  const int dimension = spread == Spread::kColumns ? 1 : 0;
  if (spread != Spread::kWhole && ranks.size() > 1)
    tensor.slice = nn::slice_of(dimension, tensor.shape[dimension], ranks.rank(), ranks.size());
  return tensor;
}

nn::ParameterId TransformerBuilder::drawn(nn::ParameterSpec spec, Draw draw) {
  spec.init_std = draw.std;
  spec.lr_scale = draw.lr_scale;
  const auto id = m_.parameters_.add(std::move(spec));
  if (draw.truncated) truncated_.push_back(id);
  return id;
}

nn::ParameterId TransformerBuilder::matrix(const nn::LogicalTensor& tensor, Draw draw, ParameterKind kind) {
  // Routers and gates see a share of the tokens or of the width each.
  return drawn({.parts = {tensor}, .shape = tensor.held(), .kind = kind, .partial = tensor.whole() && tp_.size() > 1},
               draw);
}

nn::ParameterId TransformerBuilder::fused(const std::vector<nn::LogicalTensor>& parts, Draw draw, bool expert) {
  std::vector<int64_t> shape = parts[0].held();
  for (size_t i = 1; i < parts.size(); ++i) shape[0] += parts[i].held()[0];
  return drawn({.parts = parts, .shape = std::move(shape), .expert = expert}, draw);
}

nn::Norm TransformerBuilder::norm(const std::string& name) {
  const auto id = m_.parameters_.add({.parts = {{name + ".weight", {shape_.hidden}}},
                                      .shape = {shape_.hidden},
                                      .kind = ParameterKind::kNorm,
                                      .partial = share_tokens_,
                                      .init_value = 1.0});
  return {m_.parameters_, id, config_.model.norm_eps};
}

nn::StageSite TransformerBuilder::site(std::string name) const {
  return {std::move(name), static_cast<int>(m_.stages_.size())};
}

Slot TransformerBuilder::exchange(const std::string& name, nn::TokenMoves moves, Slot input) {
  if (tp_.size() == 1) return input;
  const Slot output = m_.slots_.add(name);
  stage<nn::TokenExchange>(name, tp_, moves, nn::Wire{input, output});
  return output;
}

Slot TransformerBuilder::enter(const std::string& name, Slot input) {
  return exchange(name + ".enter", nn::enter_tensor_region(share_tokens_), input);
}

Slot TransformerBuilder::leave(const std::string& name, Slot input) {
  return exchange(name + ".leave", nn::leave_tensor_region(share_tokens_), input);
}

void TransformerBuilder::build() {
  const int64_t D = shape_.hidden, V = shape_.vocab;
  const auto embedding =
      matrix(tensor("embedding.weight", {V, D}, Spread::kRows), init_.embedding(), ParameterKind::kEmbedding);
  Slot stream = m_.slots_.add("embedding");
  stage<nn::Embedding>("embedding", m_.parameters_, embedding, stream);
  stream = leave("embedding", stream);
  for (size_t l = 0; l < m_.moe_layers_.size(); ++l)
    m_.decisions_.push_back(m_.slots_.add(fmt::format("decision.{}", l)));
  for (size_t l = 0; l < shape_.layers.size(); ++l) {
    const Name name{fmt::format("layers.{}.", l)};
    const Slot block_input = stream;
    stream = attention(name, stream);
    stream = feed_forward_block(name, shape_.layers[l], {stream, block_input});
  }
  m_.hidden_ = m_.slots_.add("final_norm");
  stage<nn::NormStage>("final_norm", norm("final_norm"), stream, m_.hidden_);
  m_.head_ = shape_.tied ? embedding
                         : matrix(tensor("head.weight", {V, D}, Spread::kRows), init_.head(), ParameterKind::kWeight);
  const Slot all_tokens = enter("loss", m_.hidden_);
  m_.logit_scale_ = init_.logit_scale();
  stage<nn::Loss>("loss", m_.parameters_, nn::OutputHead{m_.head_, m_.logit_scale_}, all_tokens, tp_);
}

template <typename F>
Slot TransformerBuilder::residual(const Name& name, const std::string& part, Slot input, F sub_layer) {
  const bool pre = config_.model.norm_placement == NormPlacement::kPre;
  const auto weights = norm(name(part + "_norm"));
  std::vector<Slot> branches;
  if (pre) {
    const Slot normed = m_.slots_.add(name(part + "_norm"));
    stage<nn::NormStage>(name(part + "_norm"), weights, input, normed);
    branches = sub_layer(normed);
  } else {
    const auto results = sub_layer(input);
    Slot sum = results[0];
    if (results.size() > 1) {
      sum = m_.slots_.add(name(part + "_sum"));
      stage<nn::Residual>(name(part + "_sum"), results, sum);
    }
    branches = {m_.slots_.add(name(part + "_norm"))};
    stage<nn::NormStage>(name(part + "_norm"), weights, sum, branches[0]);
  }
  branches.insert(branches.begin(), input);
  const Slot output = m_.slots_.add(name(part + "_residual"));
  stage<nn::Residual>(name(part + "_residual"), branches, output);
  return output;
}

nn::AttentionWeights TransformerBuilder::attention_weights(const Name& name) {
  const int64_t D = shape_.hidden, q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  const auto rows = [&](const char* which, std::vector<int64_t> shape) {
    return tensor(name(fmt::format("attention.{}", which)), std::move(shape), Spread::kRows);
  };
  nn::AttentionWeights weights{};
  weights.qkv =
      fused({rows("q.weight", {q, D}), rows("k.weight", {kv, D}), rows("v.weight", {kv, D})}, init_.matrix(D), false);
  if (shape_.qkv_bias) {
    nn::ParameterSpec bias{.parts = {rows("q.bias", {q}), rows("k.bias", {kv}), rows("v.bias", {kv})},
                           .shape = {(q + 2 * kv) / tp_.size()},
                           .kind = ParameterKind::kBias};
    weights.qkv_bias = m_.parameters_.add(std::move(bias));
  }
  // Over the whole width the norm's weight is spread like the heads, for each head every rank has it.
  const auto norm_of = [&](const char* which, int64_t width) {
    const bool full = shape_.qk_norm == QkNorm::kFull;
    const auto weight = tensor(name(fmt::format("attention.{}.weight", which)), {full ? width : shape_.head_dim},
                               full ? Spread::kRows : Spread::kWhole);
    const auto id = m_.parameters_.add({.parts = {weight},
                                        .shape = weight.held(),
                                        .kind = ParameterKind::kNorm,
                                        .partial = weight.whole() && tp_.size() > 1,
                                        .init_value = 1.0});
    return nn::Norm(m_.parameters_, id, config_.model.norm_eps, full ? tp_ : comm::Group());
  };
  if (shape_.qk_norm != QkNorm::kNone) {
    weights.q_norm.emplace(norm_of("q_norm", q));
    weights.k_norm.emplace(norm_of("k_norm", kv));
  }
  const auto output = tensor(name("attention.o.weight"), {D, q}, Spread::kColumns);
  weights.output = matrix(output, init_.residual(q), ParameterKind::kWeight);
  return weights;
}

Slot TransformerBuilder::attention(const Name& name, Slot input) {
  return residual(name, "attention", input, [&](Slot x) -> std::vector<Slot> {
    const auto weights = attention_weights(name);
    const nn::AttentionConfig config{.heads = shape_.heads / tp_.size(),
                                     .kv_heads = shape_.kv_heads / tp_.size(),
                                     .head_dim = shape_.head_dim,
                                     .max_positions = shape_.max_seq_len,
                                     .rope_theta = config_.model.rope_theta,
                                     .score_scale = init_.score_scale(shape_.head_dim),
                                     .norm_full = shape_.qk_norm == QkNorm::kFull,
                                     .document_mask = config_.document_mask};
    const Slot all_tokens = enter(name("attention"), x);
    const Slot output = m_.slots_.add(name("attention"));
    stage<nn::Attention>(name("attention"), m_.parameters_, config, weights, nn::Wire{all_tokens, output});
    return {leave(name("attention"), output)};
  });
}

nn::FeedForwardWeights TransformerBuilder::ffn_weights(const std::string& prefix, int64_t width) {
  const int64_t D = shape_.hidden;
  nn::FeedForwardWeights weights{};
  weights.gate_up_2FD = fused({tensor(prefix + "gate.weight", {width, D}, Spread::kRows),
                               tensor(prefix + "up.weight", {width, D}, Spread::kRows)},
                              init_.matrix(D), false);
  weights.down_DF = matrix(tensor(prefix + "down.weight", {D, width}, Spread::kColumns), init_.residual(width),
                           ParameterKind::kWeight);
  return weights;
}

Slot TransformerBuilder::shared_expert(const Name& name, const LayerShape& layer, Slot input) {
  auto weights = ffn_weights(name("moe.shared."), layer.shared_width);
  if (layer.shared_gate) {
    const auto gate = tensor(name("moe.shared_gate.weight"), {1, shape_.hidden}, Spread::kWhole);
    weights.output_gate_1D = matrix(gate, init_.matrix(shape_.hidden), ParameterKind::kWeight);
  }
  const Slot all_tokens = enter(name("moe.shared"), input);
  const Slot output = m_.slots_.add(name("moe.shared"));
  stage<nn::FeedForward>(name("moe.shared"), m_.parameters_, weights, nn::Wire{all_tokens, output});
  return leave(name("moe.shared"), output);
}

Slot TransformerBuilder::dense(const std::string& name, int64_t width, Slot input, bool output_read) {
  const auto weights = ffn_weights(name + ".", width);
  const Slot all_tokens = enter(name, input);
  const Slot output = m_.slots_.add(name);
  auto& made = stage<nn::FeedForward>(name, m_.parameters_, weights, nn::Wire{all_tokens, output});
  if (output_read && tp_.size() == 1) made.keep_output();
  return leave(name, output);
}

Slot TransformerBuilder::feed_forward_block(const Name& name, const LayerShape& layer, Branches from) {
  return residual(name, "ffn", from.input, [&](Slot x) -> std::vector<Slot> {
    if (!layer.moe && !layer.merges()) return {dense(name("ffn"), layer.ffn_width, x)};
    return moe_sub_layer(name, layer, {x, from.block_input});
  });
}

}  // namespace conclave::model
