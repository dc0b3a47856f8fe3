// SPDX-License-Identifier: Apache-2.0
#include "config/fields.h"
#include "moe/router.h"
#include "train/config_rules.h"

namespace conclave::train {
namespace {

// False for a divisor of zero, which stands for a value that was not given.
bool divides(int64_t divisor, int64_t value) { return divisor > 0 && value % divisor == 0; }

void check_layer_lists(const RunConfig& config, Rules& rules) {
  const moe::MoeConfig& moe = config.moe;
  const int64_t layers = config.model.num_layers;
  if (const auto* list = std::get_if<std::vector<int64_t>>(&moe.layers)) {
    rules.require(
        static_cast<int64_t>(list->size()) == layers, {"moe.layers", "model.num_layers"},
        fmt::format("has {} entries, but the model has {} layers; give one 0 or 1 for each", list->size(), layers));
    rules.require(std::all_of(list->begin(), list->end(), [](int64_t flag) { return flag == 0 || flag == 1; }),
                  {"moe.layers"}, "every entry must be 0 (dense) or 1 (mixture of experts)");
  }
  const int64_t moe_layers = count_moe_layers(config);
  rules.warn_if(moe.enabled && moe_layers == 0 && layers > 0, {"moe.layers", "moe.layers.first_k_dense"},
                "no layer is a mixture of experts; moe.enabled: false says so more clearly");
  if (const auto* experts = std::get_if<std::vector<int64_t>>(&moe.num_experts)) {
    rules.require(
        static_cast<int64_t>(experts->size()) == moe_layers, {"moe.num_experts", "moe.layers", "model.num_layers"},
        fmt::format("has {} entries, but {} layers are MoE; give one number for each", experts->size(), moe_layers));
  }
}

// Least number of experts of any layer, before granularity.
int64_t least_experts(const moe::MoeConfig& moe) {
  if (const int64_t* one = std::get_if<int64_t>(&moe.num_experts)) return *one;
  const auto& list = std::get<std::vector<int64_t>>(moe.num_experts);
  return list.empty() ? 1 : *std::min_element(list.begin(), list.end());
}

void check_top_k(const moe::MoeConfig& moe, Rules& rules) {
  const auto phases = moe.top_k.phases();
  rules.require(!phases.empty() && !phases.back().until, {"moe.top_k"},
                "the last entry must have no `until`: its number holds to the end");
  for (size_t i = 0; i + 1 < phases.size(); ++i) {
    const int64_t before = i == 0 ? 0 : phases[i - 1].until.value_or(0);
    rules.require(phases[i].until.value_or(0) > before, {fmt::format("moe.top_k[{}]", i)},
                  "every entry but the last needs an `until`, later than the one before");
  }
  const moe::RouterConfig& router = moe.router;
  rules.require(!moe.top_k.scheduled() || (router.type != "hash" && router.type != "hierarchical"),
                {"moe.top_k", "moe.router.type"},
                fmt::format("moe.router.type {} has as many experts for each token in every step", router.type));
  rules.require(!moe.top_k.scheduled() || router.second == "always", {"moe.top_k", "moe.router.second"},
                "a random second expert needs 2 experts for each token in every step");
}

// Experts of different widths (HMoE).
void check_width_list(const moe::MoeConfig& moe, Rules& rules) {
  const auto* widths = moe.expert_hidden_size ? moe.expert_hidden_size->each() : nullptr;
  if (widths == nullptr) return;
  const std::string key = "moe.expert_hidden_size";
  const auto* layers = std::get_if<std::vector<int64_t>>(&moe.num_experts);
  const auto counts = layers ? *layers : std::vector<int64_t>{std::get<int64_t>(moe.num_experts)};
  for (const int64_t experts : counts) {
    if (experts == std::ssize(*widths)) continue;
    rules.require(false, {key, "moe.num_experts"},
                  fmt::format("has {} widths, but a layer has {} experts; give one for each, or one number for all",
                              widths->size(), experts));
    return;
  }
  rules.require(moe.granularity == 1, {"moe.granularity", key},
                "cuts experts of one width; with a list of widths give those that experts have after cutting");
  rules.require(moe.num_shared_experts == 0 || moe.shared_hidden_size, {key, "moe.num_shared_experts"},
                "has no one width that a shared expert could take; set moe.shared_hidden_size");
}

void check_experts(const RunConfig& config, Rules& rules) {
  const moe::MoeConfig& moe = config.moe;
  check_width_list(moe, rules);
  const int64_t experts = least_experts(moe);
  check_top_k(moe, rules);
  rules.require(moe.top_k.most() <= experts, {"moe.top_k", "moe.num_experts"},
                fmt::format("{} experts for each token, but a layer has only {}", moe.top_k.most(), experts));
  const int64_t width =
      moe.expert_hidden_size.value_or(config.model.ffn_hidden_size.value_or(4 * config.model.hidden_size));
  const bool one_width = !moe.expert_hidden_size || moe.expert_hidden_size->each() == nullptr;
  rules.require(
      !one_width || divides(moe.granularity, width),
      {"moe.granularity", "moe.expert_hidden_size", "model.ffn_hidden_size"},
      fmt::format("experts of width {} cannot be cut into {} equal parts ({} % {} = {})", width, moe.granularity, width,
                  moe.granularity, moe.granularity > 0 ? width % moe.granularity : 0));
  rules.require(moe.num_shared_experts > 0 || !moe.shared_hidden_size, {"moe.shared_hidden_size"},
                "there is no shared expert; set moe.num_shared_experts or remove this");
  rules.require(moe.num_shared_experts > 0 || !moe.shared_gate, {"moe.shared_gate"},
                "there is no shared expert to gate; set moe.num_shared_experts or false");
}

void check_shapes(const RunConfig& config, Rules& rules) {
  const moe::MoeConfig& moe = config.moe;
  rules.one_of("moe.branch_gate", moe.branch_gate, {"none", "softmax"});
  rules.require(moe.branch_gate == "none" || moe.branch == moe::Branch::kParallel, {"moe.branch_gate", "moe.branch"},
                "weighs the experts against a dense FFN that reads the same input; set moe.branch: parallel");
  rules.one_of("moe.shared_merge", moe.shared_merge, {"add", "mean"});
  const bool mean = moe.shared_merge == "mean";
  rules.require(!mean || moe.num_shared_experts > 0, {"moe.shared_merge", "moe.num_shared_experts"},
                "there is no shared expert; set moe.num_shared_experts or add");
  const auto* router = moe::Router::find(moe.router.type);
  const bool varies = moe.top_k.scheduled() || moe.router.top_p || (router != nullptr && router->many_picks);
  rules.require(!mean || !varies, {"moe.shared_merge", "moe.top_k", "moe.router.top_p", "moe.router.type"},
                "a mean with the shared expert needs the same number of experts for each token in every step");
  rules.require(!moe.fallback || moe.capacity.factor, {"moe.fallback", "moe.capacity.factor"},
                "training refuses nothing without a capacity; set moe.capacity.factor or remove this");
  const bool at_home =
      moe.router.type == "null_experts" || moe.router.type == "zero_compute" || moe.router.type == "default_moe";
  rules.require(!mean || !at_home, {"moe.shared_merge", "moe.router.type"},
                "a mean with the shared expert needs the same number of experts for each token, and some stay at home");
  rules.require((moe.router.type != "zero_compute" && moe.router.type != "default_moe") || !moe.capacity.renormalize,
                {"moe.capacity.renormalize", "moe.router.type"},
                "would scale the experts that compute and not what is added at home");
  rules.require(!moe.fallback || !moe.capacity.renormalize, {"moe.fallback", "moe.capacity.renormalize"},
                "the fallback expert gets the weights that capacity refused, and renormalising gives them to others");
}

void check_router(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  const bool normalised_already = !router.score_before_topk && router.score == moe::Score::kSoftmax;
  rules.warn_if(!router.score_before_topk && router.score == moe::Score::kSigmoid, {"moe.router.score_before_topk"},
                "has no effect: the sigmoid of an expert does not depend on which others are chosen");
  rules.warn_if(router.norm_topk_prob && normalised_already, {"moe.router.norm_topk_prob"},
                "has no effect: a softmax over the chosen experts (score_before_topk: false) sums to 1 already");
  const bool normalises = router.norm_topk_prob || normalised_already;
  const moe::HierarchicalConfig levels = router.hierarchical.value_or(moe::HierarchicalConfig());
  rules.warn_if(router.type == "hierarchical" && normalises && config.moe.enabled &&
                    (levels.group_k == 1 || config.moe.top_k * config.moe.granularity == levels.group_k),
                {"moe.router.norm_topk_prob", "moe.router.score_before_topk", "moe.router.hierarchical.group_k"},
                "a level that picks one of its groups or members has the renormalised weight 1, so it learns from the "
                "auxiliary losses only; use score_before_topk: true and norm_topk_prob: false");
  const int64_t chosen = router.top_p || router.type == "hierarchical" ? 0 : config.moe.top_k * config.moe.granularity;
  rules.warn_if(chosen == 1 && normalises && config.moe.enabled,
                {"moe.router.norm_topk_prob", "moe.router.score_before_topk", "moe.top_k"},
                "with one expert for each token the renormalised weight is always 1, so the router learns from the "
                "auxiliary losses only; use score_before_topk: true and norm_topk_prob: false");
}

bool equal_experts(const moe::MoeConfig& moe) {
  const auto* list = std::get_if<std::vector<int64_t>>(&moe.num_experts);
  return !list || std::adjacent_find(list->begin(), list->end(), std::not_equal_to<>()) == list->end();
}

void check_losses(const RunConfig& config, Rules& rules) {
  const std::vector<moe::BalanceLoss>& losses = config.moe.balance.losses;
  for (size_t i = 0; i < losses.size(); ++i) {
    const moe::BalanceLoss& loss = losses[i];
    const std::string path = fmt::format("moe.balance.losses[{}]", i);
    const moe::BalanceLoss defaults;
    if (loss.type != moe::LossType::kSwitch) {
      rules.warn_if(
          loss.level != defaults.level || loss.convention != defaults.convention || loss.scope != defaults.scope,
          {path}, "level, convention and scope have an effect on switch losses only");
      continue;
    }
    const std::string convention(config::enum_name(loss.convention));
    const bool counts_all_choices =
        loss.convention == moe::Convention::kMegatron || loss.convention == moe::Convention::kDeepseek;
    rules.require(
        loss.level == moe::Level::kMicro || counts_all_choices, {path + ".level", path + ".convention"},
        fmt::format("the convention '{}' is defined for level micro only; use megatron or deepseek", convention));
    rules.require(
        loss.scope == moe::Scope::kLayer || loss.convention == moe::Convention::kHuggingface,
        {path + ".scope", path + ".convention"},
        fmt::format("scope model is what transformers does; it needs convention huggingface, not '{}'", convention));
    rules.require(loss.scope == moe::Scope::kLayer || equal_experts(config.moe), {path + ".scope", "moe.num_experts"},
                  "scope model adds up the counts of all layers, so each must have the same number of experts; give "
                  "moe.num_experts one number or use scope layer");
  }
}

void check_bias(const RunConfig& config, Rules& rules) {
  const moe::BiasConfig& bias = config.moe.balance.bias;
  const moe::BiasConfig defaults;
  const bool off = bias.update_rate == 0;
  rules.warn_if(off && bias.rule != defaults.rule, {"moe.balance.bias.rule"},
                "has no effect without moe.balance.bias.update_rate: there is no bias");
  rules.warn_if(off && bias.center != defaults.center, {"moe.balance.bias.center"},
                "has no effect without moe.balance.bias.update_rate: there is no bias");
}

void check_capacity(const RunConfig& config, Rules& rules) {
  const moe::CapacityConfig& capacity = config.moe.capacity;
  rules.require(!capacity.factor || *capacity.factor > 0, {"moe.capacity.factor"},
                "must be greater than 0; null takes every token (dropless)");
  rules.require(!capacity.eval_factor || *capacity.eval_factor > 0, {"moe.capacity.eval_factor"},
                "must be greater than 0; null takes moe.capacity.factor");
  const moe::CapacityConfig defaults;
  const bool dropless = !capacity.factor && !capacity.eval_factor;
  rules.warn_if(capacity.renormalize && dropless, {"moe.capacity.renormalize"},
                "has no effect without moe.capacity.factor: nothing is dropped");
  rules.warn_if(capacity.factor && config.moe.router.top_p, {"moe.capacity.factor", "moe.router.top_p"},
                fmt::format("capacity is planned for {} experts of a token (moe.top_k), and top_p may take more",
                            config.moe.top_k * config.moe.granularity));
  const bool spills = capacity.policy == moe::DropPolicy::kSpill && capacity.eval_factor;
  rules.warn_if(capacity.policy != defaults.policy && !capacity.factor && !spills, {"moe.capacity.policy"},
                "has no effect without moe.capacity.factor: training drops nothing, and evaluation drops by position");
  rules.warn_if(capacity.renormalize && capacity.factor && config.moe.top_k * config.moe.granularity == 1,
                {"moe.capacity.renormalize", "moe.top_k"},
                "with one expert for each token the weight that survives is always 1, so the router learns from the "
                "auxiliary losses only");
  rules.warn_if(capacity.min != defaults.min && dropless, {"moe.capacity.min"},
                "has no effect without moe.capacity.factor: experts take every token");
}

}  // namespace

int64_t least_top_k(const moe::MoeConfig& moe) {
  int64_t least = moe.top_k;
  for (const moe::TopKPhase& phase : moe.top_k.phases()) least = std::min(least, phase.k);
  return least * moe.granularity;
}

void check_model(const RunConfig& config, Rules& rules) {
  const model::ModelConfig& model = config.model;
  const int64_t heads = model.num_attention_heads;
  const int64_t kv_heads = model.num_key_value_heads.value_or(heads);
  rules.require(divides(kv_heads, heads), {"model.num_key_value_heads", "model.num_attention_heads"},
                fmt::format("{} attention heads cannot share {} key/value heads evenly; use a divisor of {}", heads,
                            kv_heads, heads));
  rules.require(model.head_dim || divides(heads, model.hidden_size), {"model.num_attention_heads", "model.hidden_size"},
                fmt::format("hidden_size {} is not a multiple of {} heads; change one, or give model.head_dim",
                            model.hidden_size, heads));
  const int64_t head_dim = model.head_dim.value_or(divides(heads, model.hidden_size) ? model.hidden_size / heads : 0);
  rules.require(
      head_dim % 2 == 0, {"model.head_dim", "model.num_attention_heads", "model.hidden_size"},
      fmt::format("rotary positions turn pairs of numbers, so the head width must be even, not {}", head_dim));
}

void check_moe(const RunConfig& config, Rules& rules) {
  check_layer_lists(config, rules);
  check_experts(config, rules);
  check_shapes(config, rules);
  check_router(config, rules);
  check_losses(config, rules);
  check_bias(config, rules);
  check_capacity(config, rules);
  check_methods(config, rules);
}

}  // namespace conclave::train
