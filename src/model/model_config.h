// SPDX-License-Identifier: Apache-2.0
// The `model:` section. Resolved widths of every layer are in model_shape.h.
#pragma once

#include "config/types.h"

namespace conclave::model {

enum class QkNorm { kNone, kHead, kFull };
enum class NormPlacement { kPre, kPost };
enum class Init { kNormal, kScaled, kMup, kFanIn };

// The sizes for which optim.lr, the logits and the scores of attention are as written; other sizes are scaled to behave
// like these. Read with `init: mup`.
struct MupConfig {
  int64_t base_width = 256;
  int64_t base_head_dim = 64;
  int64_t base_experts = 8;

  void fields(auto&& field) {
    field("base_width", base_width,
          "inputs of a matrix that learns at optim.lr itself; the hidden_size at which logits are not scaled",
          config::kSize);
    field("base_head_dim", base_head_dim, "head_dim at which attention scores are divided by its root, as usual",
          config::kSize);
    field("base_experts", base_experts,
          "num_experts at which softmax weights that are not normalised are taken as they are", config::kSize);
  }
};

struct ModelConfig {
  int64_t vocab_size = 0;           // required
  int64_t hidden_size = 0;          // required
  int64_t num_layers = 0;           // required
  int64_t num_attention_heads = 0;  // required
  std::optional<int64_t> num_key_value_heads;
  std::optional<int64_t> head_dim;
  std::optional<int64_t> ffn_hidden_size;
  int64_t max_seq_len = 1024;
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false;
  double rope_theta = 10000.0;
  double norm_eps = 1e-5;
  NormPlacement norm_placement = NormPlacement::kPre;
  bool tie_embeddings = false;
  Init init = Init::kNormal;
  double init_std = 0.02;
  double init_scale = 1.0;
  MupConfig mup = {};
  std::optional<config::TextOrList> init_from;

  void fields(auto&& field) {
    field("vocab_size", vocab_size, "entries of the vocabulary", config::kRequiredSize);
    field("hidden_size", hidden_size, "width of the residual stream", config::kRequiredSize);
    field("num_layers", num_layers, "transformer blocks", config::kRequiredLayers);
    field("num_attention_heads", num_attention_heads, "query heads", config::kRequiredSize);
    field("num_key_value_heads", num_key_value_heads, "key/value heads; null = num_attention_heads", config::kSize);
    field("head_dim", head_dim, "width of a head; null = hidden_size / num_attention_heads", config::kSize);
    field("ffn_hidden_size", ffn_hidden_size, "width of dense feed-forward layers; null = 4 * hidden_size",
          config::kSize);
    field("max_seq_len", max_seq_len, "longest sequence the model is made for, in tokens", config::kSize);
    field("qk_norm", qk_norm, "RMSNorm of queries and keys: none, per head, or over the full projection");
    field("qkv_bias", qkv_bias, "bias on the query, key and value projections");
    field("rope_theta", rope_theta, "base of the rotary position frequencies", config::kPositive);
    field("norm_eps", norm_eps, "epsilon of every RMSNorm", config::kPositive);
    field("norm_placement", norm_placement, "pre = before each sub-layer, post = after it");
    field("tie_embeddings", tie_embeddings, "the output head reuses the embedding matrix");
    field("init", init,
          "normal = init_std everywhere, scaled = residual outputs divided by sqrt(2 * num_layers), mup = scales and "
          "learning rates that carry over to other widths and expert counts, fan_in = truncated normal of variance "
          "init_scale / inputs (Switch: 0.1)");
    field("init_std", init_std, "standard deviation of initial weights; with init: mup of the embedding",
          config::kPositive);
    field("init_scale", init_scale, "variance times inputs of a matrix with init: fan_in", config::kPositive);
    field("mup", mup, "sizes that init: mup is relative to");
    field("init_from", init_from,
          "a run or checkpoint whose weights this run begins with, or a list of dense runs; dense FFNs become experts");
  }
};

}  // namespace conclave::model

namespace conclave::config {
template <>
struct EnumNames<model::QkNorm> {
  static constexpr std::array<std::pair<std::string_view, model::QkNorm>, 3> kNames{
      {{"none", model::QkNorm::kNone}, {"head", model::QkNorm::kHead}, {"full", model::QkNorm::kFull}}};
};
template <>
struct EnumNames<model::NormPlacement> {
  static constexpr std::array<std::pair<std::string_view, model::NormPlacement>, 2> kNames{
      {{"pre", model::NormPlacement::kPre}, {"post", model::NormPlacement::kPost}}};
};
template <>
struct EnumNames<model::Init> {
  static constexpr std::array<std::pair<std::string_view, model::Init>, 4> kNames{{{"normal", model::Init::kNormal},
                                                                                   {"scaled", model::Init::kScaled},
                                                                                   {"mup", model::Init::kMup},
                                                                                   {"fan_in", model::Init::kFanIn}}};
};
}  // namespace conclave::config
