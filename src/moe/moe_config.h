// SPDX-License-Identifier: Apache-2.0
// The `moe:` section: expert shape, router, balancing, capacity, dispatch.
#pragma once

#include <algorithm>
#include <numeric>

#include "moe/balance_config.h"
#include "moe/router_config.h"

namespace conclave::moe {

enum class Branch { kSerial, kParallel, kResidual };
enum class DropPolicy { kPosition, kSlot, kScore, kRandom, kBpr, kSpill, kDevice };
enum class DispatchType { kAuto, kLocal, kAllToAll, kShared, kHierarchical, kAllGather };
enum class BackwardRows { kKeep, kResend };
// The number format of rows that cross between hosts.
enum class DispatchPayload { kSame, kBf16, kFp8 };
enum class CompressionType { kLsh };
enum class Placement { kShadow, kLeastLoaded };

// A stretch of steps with so many experts for each token; the last one has no end.
struct TopKPhase {
  std::optional<int64_t> until = {};
  int64_t k = 1;

  void fields(auto&& field) {
    field("until", until, "the first step with the next number", config::kSize);
    field("k", k, "experts for each token", config::kRequiredSize);
  }
};

// Experts for each token, before granularity: one number, or one by step.
struct TopK : std::variant<int64_t, std::vector<TopKPhase>> {
  TopK(int64_t k = 1) : variant(k) {}
  TopK(std::vector<TopKPhase> phases) : variant(std::move(phases)) {}

  std::vector<TopKPhase> phases() const {
    if (const auto* k = std::get_if<int64_t>(this)) return {{.k = *k}};
    return std::get<std::vector<TopKPhase>>(*this);
  }
  bool scheduled() const { return phases().size() > 1; }
  // At the end of the schedule: what the trained model has.
  operator int64_t() const { return phases().empty() ? 1 : phases().back().k; }
  int64_t most() const {
    int64_t most = 1;
    for (const TopKPhase& phase : phases()) most = std::max(most, phase.k);
    return most;
  }
};

// Width of every expert before granularity; or of each expert of a layer, the same for all layers (HMoE).
struct ExpertWidth : std::variant<int64_t, std::vector<int64_t>> {
  ExpertWidth(int64_t width = 1) : variant(width) {}
  ExpertWidth(std::vector<int64_t> widths) : variant(std::move(widths)) {}

  // Null: one for all.
  const std::vector<int64_t>* each() const { return std::get_if<std::vector<int64_t>>(this); }
  // Of a list its mean, rounded down.
  operator int64_t() const {
    const auto* widths = each();
    if (widths == nullptr) return std::get<int64_t>(*this);
    return widths->empty() ? 1 : std::accumulate(widths->begin(), widths->end(), int64_t{0}) / std::ssize(*widths);
  }
};

// Which layers are MoE: l >= first_k_dense and (l - first_k_dense) % layer_freq == 0; or a list of 0/1, one per layer.
struct LayerPattern {
  int64_t first_k_dense = 0;
  int64_t layer_freq = 1;

  void fields(auto&& field) {
    field("first_k_dense", first_k_dense, "the first layers that stay dense", config::kNotNegative);
    field("layer_freq", layer_freq, "after those, every n-th layer is MoE", config::kSize);
  }
};

// Options of the drop policy spill.
struct SpillConfig {
  std::optional<int64_t> hops = {};
  void fields(auto&& field) {
    field("hops", hops, "other experts that a refused token asks at most; null = all",
          config::Rule{.min = 0, .max = 1e9});
  }
};

struct CapacityConfig {
  std::optional<double> factor;
  std::optional<double> eval_factor;
  DropPolicy policy = DropPolicy::kPosition;
  bool renormalize = false;
  int64_t min = 4;
  std::optional<SpillConfig> spill = {};
  std::optional<int64_t> devices = {};

  void fields(auto&& field) {
    field("factor", factor, "capacity C = max(min, ceil(factor * k * T / E)) per micro-batch; null = dropless");
    field("eval_factor", eval_factor, "the same in evaluation; null = factor");
    field("policy", policy, "order in which tokens are admitted");
    field("renormalize", renormalize, "divide the weights that survive by their sum");
    field("min", min, "least capacity", config::kSize);
    field("spill", spill, "options of policy spill");
    field("devices", devices,
          "policy device: equal groups of neighbouring experts, each with the capacity of its experts", config::kSize);
  }
};

// A dense expert for what capacity refused.
struct FallbackConfig {
  int64_t hidden_size = 1;
  void fields(auto&& field) {
    field("hidden_size", hidden_size, "width of the expert that dropped choices fall back to", config::kRequiredSize);
  }
};

struct ExpertsConfig {
  std::string backend = "auto";
  double dropout = 0.0;
  void fields(auto&& field) {
    field("backend", backend, "grouped product: auto");
    field("dropout", dropout, "share of an expert's hidden activations that a token loses in training; 0 = none",
          config::kDecayRate);
  }
};

// Similar rows of one expert travel as one, in training.
struct CompressionConfig {
  CompressionType type = CompressionType::kLsh;
  int64_t hashes = 6;
  std::optional<int64_t> dimensions = {};
  void fields(auto&& field) {
    field("type", type, "lsh = the mean of the rows that locality-sensitive hashes do not tell apart (LSH-MoE)");
    field("hashes", hashes, "hashes that rows must have in common to travel as one; more = finer",
          config::Rule{.min = 1, .max = 64});
    field("dimensions", dimensions,
          "directions of a random rotation among which each hash takes a row's nearest; fewer = coarser; null = all",
          config::Rule{.min = 1, .max = 1 << 16});
  }
};

// Experts whose weights travel to their tokens instead.
struct PlacementConfig {
  Placement type = Placement::kShadow;
  double threshold = 1.0;
  void fields(auto&& field) {
    field("type", type,
          "shadow = a busy expert's weights go to all ranks of its group (FasterMoE); least_loaded = surplus rows of "
          "busy "
          "ranks go with the weights to idle ones");
    field("threshold", threshold, "load of a rank over the mean from which on it gives away", config::Rule{.min = 1});
  }
};

struct DispatchConfig {
  DispatchType type = DispatchType::kAuto;
  BackwardRows backward_rows = BackwardRows::kKeep;
  DispatchPayload payload = DispatchPayload::kSame;
  std::optional<CompressionConfig> compression = {};
  std::optional<PlacementConfig> placement = {};

  void fields(auto&& field) {
    field("type", type,
          "token exchange over parallel.ep, see docs/parallel.md; auto = by ranks, hosts and experts per token");
    field("backward_rows", backward_rows, "keep the rows received for backward");
    field("payload", payload,
          "number format of rows between hosts: same = as they are; bf16 = half the bytes, fp8 = a quarter, rounded; "
          "see docs/parallel.md");
    field("placement", placement, "experts that are computed elsewhere when load is uneven; null = each at its owner");
    field("compression", compression, "rows that travel as the mean of similar ones in training; null = each row");
  }
};

// Experts of one size with a router of their own (Slicing and Dicing, arXiv 2605.11689).
struct ExpertSet {
  int64_t num_experts = 1;
  int64_t expert_hidden_size = 1;
  int64_t top_k = 1;
  void fields(auto&& field) {
    field("num_experts", num_experts, "experts of the set", config::kRequiredSize);
    field("expert_hidden_size", expert_hidden_size, "width of each", config::kRequiredSize);
    field("top_k", top_k, "of them for each token", config::kSize);
  }
};

struct MoeConfig {
  bool enabled = true;
  config::IntOrList num_experts = int64_t{8};
  std::vector<ExpertSet> sets = {};
  Branch branch = Branch::kSerial;
  std::string branch_gate = "none";
  TopK top_k = int64_t{2};
  std::optional<ExpertWidth> expert_hidden_size;
  int64_t granularity = 1;
  int64_t num_shared_experts = 0;
  std::optional<int64_t> shared_hidden_size;
  bool shared_gate = false;
  std::string shared_merge = "add";
  std::optional<FallbackConfig> fallback = {};
  std::variant<LayerPattern, std::vector<int64_t>> layers = LayerPattern{};
  RouterConfig router;
  BalanceConfig balance;
  CapacityConfig capacity;
  ExpertsConfig experts;
  DispatchConfig dispatch;

  void fields(auto&& field) {
    field("enabled", enabled, "false = the dense twin: each MoE layer becomes a dense one of width k * width + shared");
    field("num_experts", num_experts, "routed experts; or a list, one per MoE layer", config::kSize);
    field("sets", sets,
          "sets of experts, each with its own size, router and losses, beside each other in every MoE layer");
    field("branch", branch,
          "serial = experts alone; parallel = a dense FFN of width model.ffn_hidden_size beside them; residual = the "
          "same, and the experts read the block's input (Arctic)");
    field("branch_gate", branch_gate,
          "with branch parallel: none = sum; softmax = experts and dense FFN weighted by a learned softmax (PR-MoE)");
    field("top_k", top_k, "experts for each token; or by step: [{until: 100, k: 6}, {k: 1}]",
          config::Rule{.min = 1, .max = 1e9});
    field("expert_hidden_size", expert_hidden_size,
          "width of an expert; or a list, one for each expert of a layer; null = model.ffn_hidden_size", config::kSize);
    field("granularity", granularity, "G: E*G experts of width/G, k*G for each token (ReMoE)", config::kSize);
    field("num_shared_experts", num_shared_experts, "experts every token uses", config::Rule{.min = 0, .max = 1e9});
    field("shared_hidden_size", shared_hidden_size,
          "total width of the shared expert; null = count * resolved expert width", config::kSize);
    field("shared_gate", shared_gate, "sigmoid gate on the shared expert (Qwen2-MoE)");
    field("shared_merge", shared_merge,
          "add = routed + shared; mean = (top_k * routed + shared) / (top_k + 1) (a generalist expert)");
    field("fallback", fallback, "a dense expert for choices that capacity refused; null = they are lost");
    field("layers", layers, "which layers are MoE");
    field("router", router, "how tokens choose experts");
    field("balance", balance, "how load is kept even");
    field("capacity", capacity, "how many tokens an expert takes");
    field("experts", experts, "how experts are computed");
    field("dispatch", dispatch, "how tokens travel to experts");
  }
};

}  // namespace conclave::moe

namespace conclave::config {
template <>
struct EnumNames<moe::Branch> {
  static constexpr std::array<std::pair<std::string_view, moe::Branch>, 3> kNames{
      {{"serial", moe::Branch::kSerial}, {"parallel", moe::Branch::kParallel}, {"residual", moe::Branch::kResidual}}};
};
template <>
struct EnumNames<moe::DropPolicy> {
  static constexpr std::array<std::pair<std::string_view, moe::DropPolicy>, 7> kNames{
      {{"position", moe::DropPolicy::kPosition},
       {"slot", moe::DropPolicy::kSlot},
       {"score", moe::DropPolicy::kScore},
       {"random", moe::DropPolicy::kRandom},
       {"bpr", moe::DropPolicy::kBpr},
       {"spill", moe::DropPolicy::kSpill},
       {"device", moe::DropPolicy::kDevice}}};
};
template <>
struct EnumNames<moe::DispatchType> {
  static constexpr std::array<std::pair<std::string_view, moe::DispatchType>, 6> kNames{
      {{"auto", moe::DispatchType::kAuto},
       {"local", moe::DispatchType::kLocal},
       {"alltoall", moe::DispatchType::kAllToAll},
       {"shared", moe::DispatchType::kShared},
       {"hierarchical", moe::DispatchType::kHierarchical},
       {"allgather", moe::DispatchType::kAllGather}}};
};
template <>
struct EnumNames<moe::BackwardRows> {
  static constexpr std::array<std::pair<std::string_view, moe::BackwardRows>, 2> kNames{
      {{"keep", moe::BackwardRows::kKeep}, {"resend", moe::BackwardRows::kResend}}};
};
template <>
struct EnumNames<moe::CompressionType> {
  static constexpr std::array<std::pair<std::string_view, moe::CompressionType>, 1> kNames{
      {{"lsh", moe::CompressionType::kLsh}}};
};
template <>
struct EnumNames<moe::Placement> {
  static constexpr std::array<std::pair<std::string_view, moe::Placement>, 2> kNames{
      {{"shadow", moe::Placement::kShadow}, {"least_loaded", moe::Placement::kLeastLoaded}}};
};
template <>
struct EnumNames<moe::DispatchPayload> {
  static constexpr std::array<std::pair<std::string_view, moe::DispatchPayload>, 3> kNames{
      {{"same", moe::DispatchPayload::kSame},
       {"bf16", moe::DispatchPayload::kBf16},
       {"fp8", moe::DispatchPayload::kFp8}}};
};
}  // namespace conclave::config
