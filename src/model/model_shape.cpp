// SPDX-License-Identifier: Apache-2.0
#include "model/model_shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <variant>

#include "core/error.h"
#include "moe/router.h"

namespace conclave::model {
namespace {

int64_t dense_width(const ModelConfig& model) { return model.ffn_hidden_size.value_or(4 * model.hidden_size); }

std::vector<bool> moe_pattern(const ModelConfig& model, const moe::MoeConfig& moe) {
  std::vector<bool> pattern(model.num_layers);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&moe.layers)) {
    if (static_cast<int64_t>(list->size()) != model.num_layers)
      throw ConfigError("moe.layers has {} entries, model.num_layers is {}: give one 0 or 1 for each layer",
                        list->size(), model.num_layers);
    for (size_t i = 0; i < pattern.size(); ++i) pattern[i] = (*list)[i] != 0;
    return pattern;
  }
  const auto& rule = std::get<moe::LayerPattern>(moe.layers);
  if (rule.layer_freq < 1 || rule.first_k_dense < 0)
    throw ConfigError("moe.layers: first_k_dense {} must be at least 0 and layer_freq {} at least 1",
                      rule.first_k_dense, rule.layer_freq);
  for (int64_t i = rule.first_k_dense; i < model.num_layers; i += rule.layer_freq) pattern[i] = true;
  return pattern;
}

// E of the n-th MoE layer, before granularity.
int64_t listed_experts(const config::IntOrList& experts, size_t n) {
  if (const auto* list = std::get_if<std::vector<int64_t>>(&experts)) return list->at(n);
  return std::get<int64_t>(experts);
}

// What the router says of itself.
void set_router(const moe::RouterConfig& config, LayerShape& layer) {
  layer.mean_picks = static_cast<double>(layer.top_k);
  layer.router_context = config.context;
  if (config.recurrent) layer.router_state = config.recurrent->hidden_size;
  const auto* row = moe::Router::find(config.type);
  if (row == nullptr) return;  // refused elsewhere
  // As many as are positive (of untrained logits half of them are), or as add up to a share.
  if (row->many_picks || config.top_p) layer.most_picks = layer.num_experts;
  const moe::RouteShape shape{.experts = layer.num_experts, .top_k = layer.top_k};
  const auto router = row->make(config, shape);
  for (const auto& block : router->blocks(shape)) layer.router_columns += block.columns;
  layer.home_experts = router->home_experts();
  layer.home_terms = router->home_terms();
  layer.home_kept = !router->kept_vectors().empty();
  layer.outputs_kept = router->wants_stand_ins();
  layer.mean_picks = router->planned_picks(shape);
  if (config.type == "lory") layer.merge_segment = config.lory.value_or(moe::LoryConfig()).segment;
  layer.moe = !layer.merges();
}

// Leaves a layer alone whose experts are equally wide.
void set_widths(const moe::MoeConfig& moe, LayerShape& layer) {
  const auto* each = moe.expert_hidden_size ? moe.expert_hidden_size->each() : nullptr;
  if (each == nullptr) return;
  if (moe.granularity != 1 || std::ssize(*each) != layer.num_experts)
    throw ConfigError("moe.expert_hidden_size has {} entries for {} experts (granularity {}): give one for each",
                      each->size(), layer.num_experts, moe.granularity);
  if (std::adjacent_find(each->begin(), each->end(), std::not_equal_to<>()) != each->end()) layer.widths = *each;
}

LayerShape moe_layer(const ModelConfig& model, const moe::MoeConfig& moe, int64_t experts) {
  const int64_t width = moe.expert_hidden_size.value_or(dense_width(model));
  if (moe.granularity < 1 || width % moe.granularity != 0)
    throw ConfigError("moe.granularity {} must divide the expert width {}: experts get width / granularity",
                      moe.granularity, width);
  LayerShape layer{.moe = true,
                   .num_experts = experts * moe.granularity,
                   .top_k = moe.top_k * moe.granularity,
                   .expert_width = width / moe.granularity,
                   .fallback_width = moe.fallback ? moe.fallback->hidden_size : 0,
                   .shared_gate = moe.shared_gate,
                   .branch_gate = moe.branch_gate == "softmax",
                   .compressed = moe.dispatch.compression.has_value()};
  set_widths(moe, layer);
  layer.most_picks = moe.top_k.most() * moe.granularity;
  if (layer.top_k < 1 || moe.top_k.most() * moe.granularity > layer.num_experts)
    throw ConfigError("moe.top_k: a token cannot use {} of {} experts (granularity {} multiplies both)",
                      moe.top_k.most() * moe.granularity, layer.num_experts, moe.granularity);
  set_router(moe.router, layer);
  layer.shared_width = moe.shared_hidden_size.value_or(moe.num_shared_experts * layer.expert_width);
  if (layer.shared_gate && layer.shared_width == 0)
    throw ConfigError("moe.shared_gate needs a shared expert: set moe.num_shared_experts or moe.shared_hidden_size");
  if (moe.branch != moe::Branch::kSerial) layer.ffn_width = dense_width(model);
  layer.residual_dense = moe.branch == moe::Branch::kResidual;
  return layer;
}

LayerShape dense_twin(const LayerShape& layer) {
  // k experts of the mean width, to the nearest number.
  const int64_t twice = 2 * layer.top_k * layer.widths_from(0, layer.num_experts);
  const int64_t routed = (twice + layer.num_experts) / (2 * layer.num_experts);
  return {.ffn_width = routed + layer.shared_width + layer.ffn_width};
}

}  // namespace

int64_t LayerShape::widths_from(int64_t first, int64_t count) const {
  if (widths.empty()) return count * expert_width;
  const auto begin = widths.begin() + first;
  return std::accumulate(begin, begin + count, int64_t{0});
}

int64_t LayerShape::widest(int64_t count) const {
  LayerShape sorted = *this;
  std::sort(sorted.widths.begin(), sorted.widths.end(), std::greater<>());
  return sorted.widths_from(0, std::min(count, num_experts));
}

std::vector<int64_t> LayerShape::different_widths() const {
  std::vector<int64_t> all = widths.empty() ? std::vector<int64_t>{expert_width} : widths;
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

std::string width_text(const LayerShape& layer) {
  if (layer.widths.empty()) return fmt::format("width {}", layer.expert_width);
  const auto all = layer.different_widths();
  return fmt::format("widths {} to {} (mean {})", all.front(), all.back(), layer.expert_width);
}

ModelShape model_shape(const ModelConfig& model, const moe::MoeConfig& moe) {
  ModelShape shape{.vocab = model.vocab_size,
                   .hidden = model.hidden_size,
                   .heads = model.num_attention_heads,
                   .kv_heads = model.num_key_value_heads.value_or(model.num_attention_heads),
                   .head_dim = 0,
                   .max_seq_len = model.max_seq_len,
                   .tied = model.tie_embeddings,
                   .qkv_bias = model.qkv_bias,
                   .qk_norm = model.qk_norm,
                   .layers = {}};
  if (!model.head_dim && (shape.heads < 1 || shape.hidden % shape.heads != 0))
    throw ConfigError(
        "model.num_attention_heads {} does not divide model.hidden_size {}: change one or set model.head_dim",
        shape.heads, shape.hidden);
  shape.head_dim = model.head_dim ? *model.head_dim : shape.hidden / shape.heads;
  const auto pattern = moe_pattern(model, moe);
  const size_t moe_layers = std::count(pattern.begin(), pattern.end(), true);
  if (const auto* list = std::get_if<std::vector<int64_t>>(&moe.num_experts); list && list->size() != moe_layers)
    throw ConfigError("moe.num_experts has {} entries, the model has {} MoE layers: give one for each", list->size(),
                      moe_layers);
  size_t n = 0;
  for (const bool is_moe : pattern) {
    if (!is_moe) {
      shape.layers.push_back({.ffn_width = dense_width(model)});
      continue;
    }
    LayerShape layer = moe_layer(model, moe, listed_experts(moe.num_experts, n));
    layer.router_elsewhere = moe.router.share == "model" && n > 0;
    layer.router_unit = layer.router_state > 0 && n == 0;
    ++n;
    shape.layers.push_back(moe.enabled ? layer : dense_twin(layer));
  }
  return shape;
}

ModelShape share_of(const ModelShape& shape, int64_t tp, int64_t etp) {
  ModelShape share = shape;
  share.heads /= tp;
  share.kv_heads /= tp;
  share.vocab = (share.vocab + tp - 1) / tp;
  for (LayerShape& layer : share.layers) {
    layer.ffn_width /= tp;
    layer.shared_width /= tp;
    layer.fallback_width /= tp;
    layer.expert_width /= etp;
    for (int64_t& width : layer.widths) width /= etp;
  }
  return share;
}

}  // namespace conclave::model
