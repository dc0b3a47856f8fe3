// SPDX-License-Identifier: Apache-2.0
#include "model/transformer_builder.h"

#include <fmt/format.h>

#include <cmath>

#include "core/error.h"
#include "moe/dispatch_stages.h"
#include "nn/attention.h"
#include "nn/embedding.h"
#include "nn/loss.h"
#include "nn/residual.h"

namespace conclave::model {

using nn::ParameterKind;
using nn::Slot;

TransformerBuilder::TransformerBuilder(Transformer& model, const TransformerConfig& config)
    : m_(model), config_(config), shape_(model.shape_), std_(config.model.init_std), residual_std_(std_) {
  if (config.model.init == Init::kScaled) residual_std_ /= std::sqrt(2.0 * static_cast<double>(shape_.layers.size()));
}

nn::ParameterId TransformerBuilder::matrix(const std::string& name, int64_t out, int64_t in, double std,
                                           ParameterKind kind) {
  return m_.parameters_.add({.parts = {{name, {out, in}}}, .shape = {out, in}, .kind = kind, .init_std = std});
}

nn::ParameterId TransformerBuilder::fused(const std::vector<nn::LogicalTensor>& parts, std::vector<int64_t> shape,
                                          double std, bool expert) {
  return m_.parameters_.add({.parts = parts, .shape = std::move(shape), .expert = expert, .init_std = std});
}

nn::Norm TransformerBuilder::norm(const std::string& name, int64_t width) {
  const auto id = m_.parameters_.add(
      {.parts = {{name + ".weight", {width}}}, .shape = {width}, .kind = ParameterKind::kNorm, .init_value = 1.0});
  return {m_.parameters_, id, config_.model.norm_eps};
}

nn::StageSite TransformerBuilder::site(std::string name) const {
  return {std::move(name), static_cast<int>(m_.stages_.size())};
}

template <typename S, typename... Args>
S& TransformerBuilder::stage(const std::string& name, Args&&... args) {
  auto made = std::make_unique<S>(site(name), std::forward<Args>(args)...);
  S& reference = *made;
  m_.stages_.push_back(std::move(made));
  return reference;
}

void TransformerBuilder::build() {
  const int64_t D = shape_.hidden;
  const auto embedding = matrix("embedding.weight", shape_.vocab, D, std_, ParameterKind::kEmbedding);
  Slot stream = m_.slots_.add("embedding");
  stage<nn::Embedding>("embedding", m_.parameters_, embedding, stream);
  for (size_t l = 0; l < m_.moe_layers_.size(); ++l)
    m_.decisions_.push_back(m_.slots_.add(fmt::format("decision.{}", l)));
  for (size_t l = 0; l < shape_.layers.size(); ++l) {
    const Name name{fmt::format("layers.{}.", l)};
    stream = attention(name, stream);
    stream = feed_forward_block(name, shape_.layers[l], stream);
  }
  m_.hidden_ = m_.slots_.add("final_norm");
  stage<nn::NormStage>("final_norm", norm("final_norm", D), stream, m_.hidden_);
  m_.head_ = shape_.tied ? embedding : matrix("head.weight", shape_.vocab, D, std_, ParameterKind::kWeight);
  stage<nn::Loss>("loss", m_.parameters_, m_.head_, m_.hidden_);
}

template <typename F>
Slot TransformerBuilder::residual(const Name& name, const std::string& part, Slot input, F sub_layer) {
  const bool pre = config_.model.norm_placement == NormPlacement::kPre;
  const auto weights = norm(name(part + "_norm"), shape_.hidden);
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

Slot TransformerBuilder::attention(const Name& name, Slot input) {
  const int64_t D = shape_.hidden, q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  return residual(name, "attention", input, [&](Slot x) -> std::vector<Slot> {
    const auto logical = [&](const char* which, const char* kind) {
      return name(fmt::format("attention.{}.{}", which, kind));
    };
    nn::AttentionWeights weights{};
    weights.qkv =
        fused({{logical("q", "weight"), {q, D}}, {logical("k", "weight"), {kv, D}}, {logical("v", "weight"), {kv, D}}},
              {q + 2 * kv, D}, std_, false);
    if (shape_.qkv_bias) {
      weights.qkv_bias = m_.parameters_.add(
          {.parts = {{logical("q", "bias"), {q}}, {logical("k", "bias"), {kv}}, {logical("v", "bias"), {kv}}},
           .shape = {q + 2 * kv},
           .kind = ParameterKind::kBias});
    }
    if (shape_.qk_norm != QkNorm::kNone) {
      const bool full = shape_.qk_norm == QkNorm::kFull;
      weights.q_norm.emplace(norm(name("attention.q_norm"), full ? q : shape_.head_dim));
      weights.k_norm.emplace(norm(name("attention.k_norm"), full ? kv : shape_.head_dim));
    }
    weights.output = matrix(logical("o", "weight"), D, q, residual_std_, ParameterKind::kWeight);
    const nn::AttentionConfig config{.heads = shape_.heads,
                                     .kv_heads = shape_.kv_heads,
                                     .head_dim = shape_.head_dim,
                                     .max_positions = shape_.max_seq_len,
                                     .rope_theta = config_.model.rope_theta,
                                     .norm_full = shape_.qk_norm == QkNorm::kFull,
                                     .document_mask = config_.document_mask};
    const Slot output = m_.slots_.add(name("attention"));
    stage<nn::Attention>(name("attention"), m_.parameters_, config, weights, nn::Wire{x, output});
    return {output};
  });
}

nn::FeedForwardWeights TransformerBuilder::ffn_weights(const std::string& prefix, int64_t width) {
  const int64_t D = shape_.hidden;
  nn::FeedForwardWeights weights{};
  weights.gate_up_2FD =
      fused({{prefix + "gate.weight", {width, D}}, {prefix + "up.weight", {width, D}}}, {2 * width, D}, std_, false);
  weights.down_DF = matrix(prefix + "down.weight", D, width, residual_std_, ParameterKind::kWeight);
  return weights;
}

Slot TransformerBuilder::feed_forward_block(const Name& name, const LayerShape& layer, Slot input) {
  return residual(name, "ffn", input, [&](Slot x) -> std::vector<Slot> {
    if (!layer.moe) {
      const auto weights = ffn_weights(name("ffn."), layer.ffn_width);
      const Slot output = m_.slots_.add(name("ffn"));
      stage<nn::FeedForward>(name("ffn"), m_.parameters_, weights, nn::Wire{x, output});
      return {output};
    }
    std::vector<Slot> branches;
    // Registered before the exchange, so that an executor may run it inside the exchange's window.
    if (layer.shared_width > 0) {
      auto weights = ffn_weights(name("moe.shared."), layer.shared_width);
      if (layer.shared_gate) {
        weights.output_gate_1D = matrix(name("moe.shared_gate.weight"), 1, shape_.hidden, std_, ParameterKind::kWeight);
      }
      branches.push_back(m_.slots_.add(name("moe.shared")));
      stage<nn::FeedForward>(name("moe.shared"), m_.parameters_, weights, nn::Wire{x, branches.back()});
    }
    branches.insert(branches.begin(), moe_branch(name, layer, x));
    return branches;
  });
}

std::vector<moe::ExpertWeights> TransformerBuilder::expert_weights(const Name& name, const LayerShape& layer) {
  const int64_t D = shape_.hidden, F = layer.expert_width, ranks = m_.ep_.size();
  check(layer.num_experts % ranks == 0, "experts must divide over parallel.ep");
  const int64_t local = layer.num_experts / ranks, first = local * m_.ep_.rank();
  std::vector<moe::ExpertWeights> weights(local);
  for (int64_t e = 0; e < local; ++e) {
    const auto expert = [&](const char* part) {
      return name(fmt::format("moe.experts.{}.{}.weight", first + e, part));
    };
    weights[e].gate_up_2FD = fused({{expert("gate"), {F, D}}, {expert("up"), {F, D}}}, {2 * F, D}, std_, true);
  }
  for (int64_t e = 0; e < local; ++e) {
    weights[e].down_DF =
        fused({{name(fmt::format("moe.experts.{}.down.weight", first + e)), {D, F}}}, {D, F}, residual_std_, true);
  }
  return weights;
}

Slot TransformerBuilder::moe_branch(const Name& name, const LayerShape& layer, Slot input) {
  const auto slot = [&](const char* what) { return m_.slots_.add(name(std::string("moe.") + what)); };
  const auto router = matrix(name("moe.router.weight"), layer.num_experts, shape_.hidden, std_, ParameterKind::kRouter);
  int moe_layer = 0;
  for (const auto& made : m_.stages_) moe_layer += dynamic_cast<const moe::RouteStage*>(made.get()) != nullptr;
  const Slot decision = m_.decisions_[moe_layer];
  const moe::ExchangeSlots slots{.input = input,
                                 .weights = slot("weights"),
                                 .decision = decision,
                                 .plan = slot("plan"),
                                 .rows = slot("rows"),
                                 .gates = slot("gates"),
                                 .results = slot("results"),
                                 .output = slot("output")};
  auto& route =
      stage<moe::RouteStage>(name("moe.route"), m_.parameters_,
                             moe::RouteConfig{config_.moe, router, layer.top_k, config_.choices}, m_.balance_);
  route.connect({.input = input,
                 .weights = slots.weights,
                 .decision = decision,
                 .all_decisions = m_.decisions_,
                 .layer = moe_layer});
  const bool resends = m_.ep_.size() == 1 || config_.moe.dispatch.backward_rows == moe::BackwardRows::kResend;
  stage<moe::Dispatch>(name("moe.dispatch"), *m_.dispatcher_, slots, resends);
  stage<moe::ExpertStage>(name("moe.experts"), moe::Experts(m_.parameters_, expert_weights(name, layer)), slots);
  stage<moe::Combine>(name("moe.combine"), *m_.dispatcher_, slots);
  return slots.output;
}

}  // namespace conclave::model
