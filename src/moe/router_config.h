// SPDX-License-Identifier: Apache-2.0
// The section `moe.router:` how tokens choose experts.
#pragma once

#include "config/types.h"

namespace conclave::moe {

enum class Score { kSoftmax, kSigmoid };
enum class GroupScore { kAuto, kMax, kTop2 };
enum class HashTable { kModulo, kRandom, kBalanced, kClustered, kDispersed };
enum class HashFeature { kCurrent, kPrevious };
enum class FirstSegment { kUniform, kOwn };

// Options of one router each; given with another type they are refused.
struct NoisyTopKConfig {
  double epsilon = 1e-2;
  void fields(auto&& field) { field("epsilon", epsilon, "least standard deviation of the noise", config::kPositive); }
};

struct HashConfig {
  HashTable table = HashTable::kModulo;
  HashFeature feature = HashFeature::kCurrent;
  int64_t sample = 1 << 20;
  std::optional<std::string> embeddings = {};
  void fields(auto&& field) {
    field("table", table,
          "expert of a token id: modulo = id mod E, random = drawn once, balanced = frequent ids spread evenly, "
          "clustered "
          "= ids of similar embeddings together, dispersed = those apart");
    field("sample", sample, "tokens of the training data that table balanced counts", config::kSize);
    field("embeddings", embeddings, "a run whose embeddings tables clustered and dispersed compare");
    field("feature", feature, "whose id: the token's own, or the one before it in the document");
  }
};

struct SinkhornConfig {
  double tolerance = 1e-4;
  int64_t iterations = 100;
  void fields(auto&& field) {
    field("tolerance", tolerance, "mean change of the column factors at which to stop", config::kPositive);
    field("iterations", iterations, "most iterations", config::kSize);
  }
};

struct ExpertChoiceConfig {
  double threshold_decay = 0.99;
  void fields(auto&& field) {
    field("threshold_decay", threshold_decay, "of the mean admission threshold that evaluation uses",
          config::kDecayRate);
  }
};

struct SparseMixerConfig {
  double epsilon = 1e-2;
  void fields(auto&& field) {
    field("epsilon", epsilon, "experts whose logit is farther below the largest than 2 * epsilon of it are not drawn",
          config::kPositive);
  }
};

struct HierarchicalConfig {
  int64_t groups = 1;
  int64_t group_k = 1;
  void fields(auto&& field) {
    field("groups", groups, "equal groups of neighbouring experts", config::kRequiredSize);
    field("group_k", group_k, "groups for each token; each gives top_k / group_k experts", config::kSize);
  }
};

struct NullExpertsConfig {
  int64_t count = 1;
  std::optional<double> target_k = {};
  double update_rate = 1e-3;
  void fields(auto&& field) {
    field("count", count, "experts that give nothing, beside the true ones", config::kRequiredSize);
    field("target_k", target_k,
          "true experts of a token on average that the bias of null experts steers to; null = no bias",
          config::kPositive);
    field("update_rate", update_rate, "step of that bias per optimizer step", config::kPositive);
  }
};

struct ZeroComputeConfig {
  int64_t zero = 1;
  int64_t copy = 1;
  int64_t constant = 1;
  double tau = 0.75;
  void fields(auto&& field) {
    const config::Rule count{.min = 0, .max = 1e6};
    field("zero", zero, "experts that give nothing", count);
    field("copy", copy, "experts that give the token back", count);
    field("constant", constant, "experts that mix the token with a vector of their own", count);
    field("tau", tau, "tokens of an expert that computes for each token of one that does not, in capacity and losses",
          config::Rule{.min = 0, .above_min = true, .max = 1});
  }
};

struct BaseConfig {
  double epsilon = 0.02;
  int64_t sweeps = 1000;
  void fields(auto&& field) {
    field("epsilon", epsilon, "least rise of a bid, as a share of the scores' range; the assignment is best within it",
          config::kPositive);
    field("sweeps", sweeps, "bids of a token on average after which the others take what is free", config::kSize);
  }
};

struct DefaultMoeConfig {
  double decay = 0.9;
  bool update_after_use = true;
  void fields(auto&& field) {
    field("decay", decay, "of each expert's mean output, once per optimizer step", config::kDecayRate);
    field("update_after_use", update_after_use,
          "means of the steps before; false = of this micro-batch too (the paper), which sees later tokens");
  }
};

struct AutonomyConfig {
  int64_t rank = 1;
  void fields(auto&& field) {
    field("rank", rank, "inner width of each expert's factorised gate; its norm is the expert's score",
          config::kRequiredSize);
  }
};

struct LoryConfig {
  int64_t segment = 256;
  FirstSegment first = FirstSegment::kUniform;
  void fields(auto&& field) {
    field("segment", segment, "tokens of a sequence that share one merge of all experts", config::kSize);
    field(
        "first", first,
        "merge of a document's first segment: uniform = all experts alike; own = by its own mean in training, without "
        "a gradient (the paper)");
  }
};

// A state of each token that passes from MoE layer to MoE layer, for any router with weights.
struct RecurrentConfig {
  int64_t hidden_size = 1;
  void fields(auto&& field) {
    field("hidden_size", hidden_size, "numbers of a token's state; a multiple of 8 is fastest", config::kRequiredSize);
  }
};

// Bounds what crosses between hosts, for any router that picks.
struct TopologyConfig {
  double remote_share = 1.0;
  void fields(auto&& field) {
    field("remote_share", remote_share, "picks of a rank's micro-batch that may go to experts on other hosts, of all",
          config::Rule{.min = 0, .max = 1});
  }
};

struct RouterConfig {
  std::string type = "topk";
  Score score = Score::kSoftmax;
  bool score_before_topk = true;
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1.0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  GroupScore group_score = GroupScore::kAuto;
  std::string second = "always";
  double second_threshold = 0.2;
  std::optional<double> top_p = {};
  double jitter = 0.0;
  std::string noise = "none";
  bool logit_offset = false;
  std::optional<TopologyConfig> topology = {};
  bool context = false;
  std::optional<RecurrentConfig> recurrent = {};
  std::string share = "layer";
  bool frozen = false;
  std::string dtype = "fp32";
  std::optional<NoisyTopKConfig> noisy_topk = {};
  std::optional<HashConfig> hash = {};
  std::optional<SinkhornConfig> sinkhorn = {};
  std::optional<ExpertChoiceConfig> expert_choice = {};
  std::optional<SparseMixerConfig> sparsemixer = {};
  std::optional<HierarchicalConfig> hierarchical = {};
  std::optional<NullExpertsConfig> null_experts = {};
  std::optional<ZeroComputeConfig> zero_compute = {};
  std::optional<BaseConfig> base = {};
  std::optional<DefaultMoeConfig> default_moe = {};
  std::optional<LoryConfig> lory = {};
  std::optional<AutonomyConfig> autonomy_of_experts = {};
  std::optional<std::string> record;
  std::optional<std::string> replay;

  void fields(auto&& field) {
    field("type", type, "how experts are chosen; conclave methods list has all");
    field("score", score, "how logits become scores");
    field("score_before_topk", score_before_topk, "score over all experts, then choose; false = over the chosen ones");
    field("norm_topk_prob", norm_topk_prob, "divide the chosen weights by their sum");
    field("routed_scaling_factor", routed_scaling_factor, "multiplies the weights after normalisation",
          config::kPositive);
    field("n_group", n_group, "groups of experts for group-limited routing", config::kSize);
    field("topk_group", topk_group, "groups a token may use", config::kSize);
    field("group_score", group_score,
          "of a group: its best score, or the sum of its best two; auto = top2 for sigmoid");
    field("second", second, "second expert: always, or random = with probability weight / second_threshold (GShard)");
    field("second_threshold", second_threshold, "weight from which on the second expert is always used",
          config::kPositive);
    field("top_p", top_p, "the best experts until their scores add up to this much, instead of top_k of them (HMoE)",
          config::Rule{.min = 0, .above_min = true, .max = 1});
    field("jitter", jitter, "the router sees its input times a random factor in [1 - jitter, 1 + jitter] in training",
          config::kDecayRate);
    field("noise", noise,
          "added to logits before the choice in training: none, or gumbel (DeepSpeed's RSample, top_k 1)");
    field("logit_offset", logit_offset,
          "a constant of each expert is added to its logit; not learned, it is what splitting an expert leaves behind");
    field("topology", topology, "a bound on picks that go to other hosts (FasterMoE); null = none");
    field(
        "context", context,
        "the router also sees a decaying mean of its document's tokens so far, with a learned rate for each dimension");
    field("recurrent", recurrent,
          "the router reads a state of the token that a gated unit carries from MoE layer to MoE layer (RMoE); null = "
          "the layer's input");
    field("share", share, "layer = each layer its own weights, model = one router for all layers (omni-router)");
    field("frozen", frozen, "router weights stay as they are drawn");
    field("dtype", dtype, "arithmetic of logits and scores, at least fp32");
    field("noisy_topk", noisy_topk, "options of type noisy_topk");
    field("hash", hash, "options of type hash");
    field("sinkhorn", sinkhorn, "options of type sinkhorn");
    field("expert_choice", expert_choice, "options of type expert_choice");
    field("sparsemixer", sparsemixer, "options of type sparsemixer");
    field("hierarchical", hierarchical, "options of type hierarchical");
    field("null_experts", null_experts, "options of type null_experts");
    field("zero_compute", zero_compute, "options of type zero_compute");
    field("base", base, "options of type base");
    field("default_moe", default_moe, "options of type default_moe");
    field("lory", lory, "options of type lory");
    field("autonomy_of_experts", autonomy_of_experts, "options of type autonomy_of_experts");
    field("record", record, "write chosen expert ids here");
    field("replay", replay, "take expert ids from such a recording");
  }
};

}  // namespace conclave::moe

namespace conclave::config {
template <>
struct EnumNames<moe::Score> {
  static constexpr std::array<std::pair<std::string_view, moe::Score>, 2> kNames{
      {{"softmax", moe::Score::kSoftmax}, {"sigmoid", moe::Score::kSigmoid}}};
};
template <>
struct EnumNames<moe::GroupScore> {
  static constexpr std::array<std::pair<std::string_view, moe::GroupScore>, 3> kNames{
      {{"auto", moe::GroupScore::kAuto}, {"max", moe::GroupScore::kMax}, {"top2", moe::GroupScore::kTop2}}};
};
template <>
struct EnumNames<moe::HashTable> {
  static constexpr std::array<std::pair<std::string_view, moe::HashTable>, 5> kNames{
      {{"modulo", moe::HashTable::kModulo},
       {"random", moe::HashTable::kRandom},
       {"balanced", moe::HashTable::kBalanced},
       {"clustered", moe::HashTable::kClustered},
       {"dispersed", moe::HashTable::kDispersed}}};
};
template <>
struct EnumNames<moe::HashFeature> {
  static constexpr std::array<std::pair<std::string_view, moe::HashFeature>, 2> kNames{
      {{"current", moe::HashFeature::kCurrent}, {"previous", moe::HashFeature::kPrevious}}};
};
template <>
struct EnumNames<moe::FirstSegment> {
  static constexpr std::array<std::pair<std::string_view, moe::FirstSegment>, 2> kNames{
      {{"uniform", moe::FirstSegment::kUniform}, {"own", moe::FirstSegment::kOwn}}};
};
}  // namespace conclave::config
