// SPDX-License-Identifier: Apache-2.0
// Rules about routing and balancing methods: which keys belong to which, and what goes together. What a method says of
// itself (its causality) comes from its table row.
#include <bit>

#include "config/fields.h"
#include "moe/balance_loss.h"
#include "moe/capacity.h"
#include "moe/causality.h"
#include "moe/compression.h"
#include "train/config_rules.h"

namespace conclave::train {
namespace {

using moe::LossType;

struct RouterUse {
  std::string type;
  // By what the type is asked whether a key means anything with it.
  bool is(std::initializer_list<const char*> types) const {
    return std::any_of(types.begin(), types.end(), [&](const char* one) { return type == one; });
  }
};

void check_type(const RunConfig& config, Rules& rules) {
  std::vector<std::string> built;
  for (const auto& row : moe::Router::table()) built.emplace_back(row.info.type);
  rules.one_of("moe.router.type", config.moe.router.type, built, {"autonomy_of_experts", "local_experts"});
  const auto* row = moe::Router::find(config.moe.router.type);
  // A merge warns in words of its own (merge_rules.cpp).
  const bool leaks =
      row != nullptr && row->info.type != "lory" && moe::causality_of(config.moe.router) == moe::Causality::kLeaky;
  rules.warn_if(
      leaks && config.moe.enabled, {"moe.router.type"},
      fmt::format("in training a token's experts depend on later tokens too (class C3), so training losses are "
                  "optimistic; evaluation uses another form: {}",
                  leaks ? row->info.evaluation : ""));
}

void check_options(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  const auto own = [&](const char* type, bool given) {
    rules.require(!given || router.type == type, {fmt::format("moe.router.{}", type)},
                  fmt::format("options of type {}, but moe.router.type is {}", type, router.type));
  };
  own("noisy_topk", router.noisy_topk.has_value());
  own("hash", router.hash.has_value());
  own("sinkhorn", router.sinkhorn.has_value());
  own("expert_choice", router.expert_choice.has_value());
  own("sparsemixer", router.sparsemixer.has_value());
  own("hierarchical", router.hierarchical.has_value());
  own("null_experts", router.null_experts.has_value());
  own("base", router.base.has_value());
  own("default_moe", router.default_moe.has_value());
  own("lory", router.lory.has_value());
  const RouterUse use{router.type};
  own("zero_compute", router.zero_compute.has_value());
  rules.require(!config.moe.capacity.factor || !use.is({"expert_choice"}), {"moe.capacity.factor"},
                "experts of moe.router.type expert_choice take k * T / E tokens each; remove this");
  const moe::RouterConfig defaults;
  const auto meaningless = [&](const char* key, bool given, bool allowed) {
    rules.require(!given || allowed, {fmt::format("moe.router.{}", key)},
                  fmt::format("means nothing to moe.router.type {}; remove it", router.type));
  };
  meaningless("score", router.score != defaults.score, use.is({"topk"}));
  meaningless("score_before_topk", router.score_before_topk != defaults.score_before_topk,
              use.is({"topk", "hierarchical", "zero_compute"}));
  meaningless("norm_topk_prob", router.norm_topk_prob, use.is({"topk", "sinkhorn", "hierarchical", "zero_compute"}));
  meaningless("jitter", router.jitter > 0, !use.is({"hash"}));
  meaningless("n_group", router.n_group != 1, use.is({"topk", "noisy_topk"}));
  meaningless("noise", router.noise != defaults.noise, use.is({"topk"}));
  meaningless("second", router.second != defaults.second, use.is({"topk"}));
  meaningless("top_p", router.top_p.has_value(), use.is({"topk"}));
  meaningless("context", router.context, !use.is({"hash"}));
  meaningless("recurrent", router.recurrent.has_value(), !use.is({"hash"}));
  meaningless("frozen", router.frozen, !use.is({"hash"}));
  meaningless("share", router.share != defaults.share, !use.is({"hash"}));
  rules.require(config.moe.balance.bias.update_rate == 0 || use.is({"topk", "noisy_topk", "dense_backprop_group"}),
                {"moe.balance.bias.update_rate"},
                fmt::format("moe.router.type {} does not choose by biased scores", router.type));
}

// Of each MoE layer, or one number for all, after granularity.
std::vector<int64_t> experts_of_layers(const moe::MoeConfig& moe) {
  std::vector<int64_t> experts;
  if (const auto* one = std::get_if<int64_t>(&moe.num_experts)) {
    experts.push_back(*one);
  } else {
    experts = std::get<std::vector<int64_t>>(moe.num_experts);
  }
  for (int64_t& count : experts) count *= moe.granularity;
  return experts;
}

void check_shared_router(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  rules.one_of("moe.router.share", router.share, {"layer", "model"}, {});
  const auto experts = experts_of_layers(config.moe);
  const bool equal = std::adjacent_find(experts.begin(), experts.end(), std::not_equal_to<>()) == experts.end();
  rules.require(router.share != "model" || equal, {"moe.router.share", "moe.num_experts"},
                "one router for all layers needs the same number of experts in each");
}

void check_top_p(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  if (!router.top_p) return;
  rules.require(router.score == moe::Score::kSoftmax && router.score_before_topk,
                {"moe.router.top_p", "moe.router.score", "moe.router.score_before_topk"},
                "adds up the scores of a softmax over all experts: score softmax, score_before_topk true");
  rules.require(router.n_group == 1, {"moe.router.top_p", "moe.router.n_group"}, "knows no groups of experts");
  rules.require(router.second == "always", {"moe.router.top_p", "moe.router.second"},
                "takes any number of experts, so that there may be no second one");
  rules.require(config.moe.balance.bias.update_rate == 0, {"moe.router.top_p", "moe.balance.bias.update_rate"},
                "adds up scores without a bias");
}

void check_hierarchical(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  if (router.type != "hierarchical") return;
  rules.require(router.hierarchical.has_value(), {"moe.router.hierarchical", "moe.router.type"},
                "type hierarchical needs hierarchical: {groups: ..., group_k: ...}");
  const moe::HierarchicalConfig own = router.hierarchical.value_or(moe::HierarchicalConfig());
  const int64_t chosen = config.moe.top_k * config.moe.granularity;
  rules.require(own.group_k <= own.groups && chosen % own.group_k == 0,
                {"moe.router.hierarchical.group_k", "moe.top_k"},
                fmt::format("{} of {} groups cannot give equally many of {} experts", own.group_k, own.groups, chosen));
  for (const int64_t experts : experts_of_layers(config.moe))
    rules.require(experts % own.groups == 0 && chosen / own.group_k <= experts / own.groups,
                  {"moe.router.hierarchical.groups", "moe.num_experts"},
                  fmt::format("{} experts do not make {} equal groups of at least {}", experts, own.groups,
                              chosen / own.group_k));
}

void check_groups(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  const int64_t chosen = config.moe.top_k.most() * config.moe.granularity;
  rules.require(router.topk_group <= router.n_group, {"moe.router.topk_group", "moe.router.n_group"},
                fmt::format("{} of {} groups", router.topk_group, router.n_group));
  for (const int64_t experts : experts_of_layers(config.moe)) {
    rules.require(experts % router.n_group == 0, {"moe.router.n_group", "moe.num_experts"},
                  fmt::format("{} experts do not make {} equal groups", experts, router.n_group));
    rules.require(router.n_group == 1 || chosen <= router.topk_group * (experts / router.n_group),
                  {"moe.router.topk_group", "moe.top_k"},
                  fmt::format("{} groups of {} experts are too few for {} experts of a token", router.topk_group,
                              experts / router.n_group, chosen));
  }
  rules.warn_if(router.group_score != moe::GroupScore::kAuto && router.n_group == 1, {"moe.router.group_score"},
                "has no effect without moe.router.n_group");
  rules.warn_if(router.second_threshold != moe::RouterConfig().second_threshold && router.second != "random",
                {"moe.router.second_threshold"}, "has no effect without second: random");
  rules.one_of("moe.router.second", router.second, {"always", "random", "gumbel"});
  rules.require(router.second == "always" || chosen == 2, {"moe.router.second", "moe.top_k"},
                fmt::format("a random second expert needs 2 experts for each token, not {}", chosen));
}

void check_devices(const RunConfig& config, size_t index, Rules& rules) {
  const moe::BalanceLoss& loss = config.moe.balance.losses[index];
  const std::string path = fmt::format("moe.balance.losses[{}]", index);
  const int64_t devices = loss.devices.value_or(1);
  rules.require(loss.devices.has_value(), {path + ".type"}, "needs devices: how many groups the experts make");
  for (const int64_t experts : experts_of_layers(config.moe))
    rules.require(experts % devices == 0, {path + ".devices", "moe.num_experts"},
                  fmt::format("{} experts do not make {} equal groups", experts, devices));
  if (loss.type != LossType::kCommunication) return;
  rules.require(loss.max_devices.has_value(), {path + ".type"}, "needs max_devices: how many a token is meant to use");
  rules.require(loss.max_devices.value_or(1) <= devices, {path + ".max_devices", path + ".devices"},
                "a token cannot use more devices than there are");
}

void check_loss(const RunConfig& config, size_t index, Rules& rules) {
  const moe::BalanceLoss& loss = config.moe.balance.losses[index];
  const RouterUse router{config.moe.router.type};
  const std::string path = fmt::format("moe.balance.losses[{}]", index);
  const auto needs = [&](bool holds, const std::string& what) {
    rules.require(holds, {path + ".type", "moe.router.type"}, what + ", but moe.router.type is " + router.type);
  };
  switch (loss.type) {
    case LossType::kSwitch:
      rules.require(loss.level != moe::Level::kGlobal || !router.is({"null_experts", "zero_compute"}),
                    {path + ".level", "moe.router.type"}, "level global does not count experts that compute nothing");
      return needs(!router.is({"relu", "hash", "sinkhorn", "base", "expert_choice"}),
                   "a switch loss needs scores that it may even out");
    case LossType::kZ:
      return needs(!router.is({"relu", "hash", "hierarchical"}), "a z-loss needs logits of one softmax or sigmoid");
    case LossType::kPenalty:
      rules.warn_if(moe::relative_widths(config.moe).empty(), {path + ".type", "moe.expert_hidden_size"},
                    "all experts are equally wide, so this is a switch loss of convention huggingface");
      return needs(!router.is({"relu", "hash", "sinkhorn", "base", "expert_choice", "null_experts", "zero_compute"}),
                   "a penalty needs scores that it may even out, of experts with a width");
    case LossType::kDevice:
    case LossType::kCommunication:
      check_devices(config, index, rules);
      return needs(!router.is({"relu", "hash", "sinkhorn", "base", "expert_choice", "null_experts", "zero_compute"}),
                   "a loss over devices needs scores that it may even out");
    case LossType::kOrthogonality:
      return;
    case LossType::kVariance:
      return needs(!router.is({"hash", "zero_compute"}), "a variance loss needs weights of experts that compute");
    case LossType::kEntropy:
      rules.require(config.moe.router.score == moe::Score::kSoftmax, {path + ".type", "moe.router.score"},
                    "an entropy loss is of a softmax");
      rules.require(!router.is({"sinkhorn"}) || least_top_k(config.moe) > 1,
                    {path + ".type", "moe.router.type", "moe.top_k"},
                    "an entropy loss is of a softmax, and sinkhorn with one expert for each token scores by a sigmoid");
      return needs(!router.is({"relu", "hash", "base"}), "an entropy loss needs a softmax");
    case LossType::kImportance:
      return needs(!router.is({"hash", "null_experts", "zero_compute"}), "an importance loss needs weights that learn");
    case LossType::kLoad:
      rules.require(
          config.moe.router.n_group == 1 && config.moe.balance.bias.update_rate == 0,
          {path + ".type", "moe.router.n_group", "moe.balance.bias.update_rate"},
          "a load loss knows neither groups of experts nor a bias: its smooth counts would be of another choice");
      return needs(router.is({"noisy_topk"}), "a load loss needs the noise of noisy_topk");
    case LossType::kL1:
      needs(router.is({"relu"}), "an l1 loss steers the number of positive weights of a relu router");
      rules.require(loss.coef == moe::BalanceLoss().coef, {path + ".coef"},
                    "means nothing to an l1 loss: its coefficient starts at l1.start and moves by itself");
  }
}

void check_losses(const RunConfig& config, Rules& rules) {
  const auto& losses = config.moe.balance.losses;
  int64_t l1 = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    check_loss(config, i, rules);
    rules.require(!losses[i].l1 || losses[i].type == LossType::kL1, {fmt::format("moe.balance.losses[{}].l1", i)},
                  "options of type l1, but this loss has another type");
    rules.require(
        !losses[i].devices || losses[i].type == LossType::kDevice || losses[i].type == LossType::kCommunication,
        {fmt::format("moe.balance.losses[{}].devices", i)},
        "of types device and communication, but this loss has another type");
    rules.require(!losses[i].max_devices || losses[i].type == LossType::kCommunication,
                  {fmt::format("moe.balance.losses[{}].max_devices", i)},
                  "of type communication, but this loss has another type");
    l1 += losses[i].type == LossType::kL1;
  }
  const bool moves_logits = std::any_of(losses.begin(), losses.end(), [](const auto& loss) {
    return loss.type == LossType::kLoad || loss.type == LossType::kSwitch || loss.type == LossType::kDevice ||
           loss.type == LossType::kCommunication || loss.type == LossType::kEntropy || loss.type == LossType::kPenalty;
  });
  rules.require(
      config.moe.router.type != "noisy_topk" || least_top_k(config.moe) > 1 || moves_logits,
      {"moe.top_k", "moe.router.type"},
      "the one weight of noisy_topk with one expert for each token is always 1, so its router learns from a load or "
      "switch loss only, and there is none");
  rules.require(l1 <= 1, {"moe.balance.losses"}, "two l1 losses would move the same coefficient; keep one");
  rules.warn_if(config.moe.router.type == "relu" && l1 == 0 && config.moe.enabled, {"moe.router.type"},
                "without an l1 loss nothing keeps the number of experts of a token near moe.top_k");
}

void check_spill(const RunConfig& config, Rules& rules) {
  const bool spills = config.moe.capacity.policy == moe::DropPolicy::kSpill;
  const moe::RouterConfig& router = config.moe.router;
  rules.require(spills || !config.moe.capacity.spill, {"moe.capacity.spill"},
                "options of policy spill, but moe.capacity.policy is another");
  if (!spills) return;
  rules.require(RouterUse{router.type}.is({"topk", "noisy_topk"}), {"moe.capacity.policy", "moe.router.type"},
                fmt::format("spill asks the next best logit, which moe.router.type {} does not go by", router.type));
  rules.require(router.n_group == 1, {"moe.capacity.policy", "moe.router.n_group"},
                "spill would send tokens out of their groups of experts");
  rules.require(router.second == "always", {"moe.capacity.policy", "moe.router.second"},
                "spill knows no second expert that a token declines");
  rules.require(config.moe.balance.bias.update_rate == 0, {"moe.capacity.policy", "moe.balance.bias.update_rate"},
                "spill asks the next best expert by logits without a bias");
}

void check_device_capacity(const RunConfig& config, Rules& rules) {
  const moe::CapacityConfig& capacity = config.moe.capacity;
  const bool grouped = capacity.policy == moe::DropPolicy::kDevice;
  rules.require(grouped || !capacity.devices, {"moe.capacity.devices"},
                fmt::format("groups of experts of policy device, but moe.capacity.policy is {}; remove this",
                            config::enum_name(capacity.policy)));
  rules.require(!grouped || capacity.devices, {"moe.capacity.policy"},
                "needs moe.capacity.devices: how many groups the experts make");
  const int64_t devices = capacity.devices.value_or(1);
  for (const int64_t experts : experts_of_layers(config.moe))
    rules.require(!grouped || experts % devices == 0, {"moe.capacity.devices", "moe.num_experts"},
                  fmt::format("{} experts do not make {} equal groups", experts, devices));
}

void check_policy(const RunConfig& config, Rules& rules) {
  const moe::CapacityConfig& capacity = config.moe.capacity;
  const moe::MethodInfo& used = moe::Admission::row(capacity.policy).info;
  rules.warn_if(
      capacity.factor && used.causality == moe::Causality::kLeaky, {"moe.capacity.policy"},
      fmt::format("in training whether a token is dropped depends on later tokens too (class C3), so training losses "
                  "are optimistic; evaluation admits by {}",
                  used.evaluation));
  check_spill(config, rules);
  check_device_capacity(config, rules);
}

void check_compression(const RunConfig& config, Rules& rules) {
  if (!config.moe.dispatch.compression || !config.moe.enabled) return;
  const moe::CompressionConfig& own = *config.moe.dispatch.compression;
  const moe::MethodInfo& used = moe::Compressor::row(own.type).info;
  rules.warn_if(used.causality == moe::Causality::kLeaky, {"moe.dispatch.compression"},
                fmt::format("in training a token's result depends on later tokens too (class C3), so training losses "
                            "are optimistic; an evaluation sends {}",
                            used.evaluation));
  const auto directions = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(config.model.hidden_size)));
  rules.require(
      own.dimensions.value_or(1) <= directions, {"moe.dispatch.compression.dimensions", "model.hidden_size"},
      fmt::format("a rotation of rows of {} numbers has {} directions", config.model.hidden_size, directions));
  rules.require(config.moe.experts.dropout == 0, {"moe.dispatch.compression", "moe.experts.dropout"},
                "a row of several tokens has no token to draw dropout by; set moe.experts.dropout 0, or this null");
  rules.require(config.moe.router.type != "default_moe", {"moe.dispatch.compression", "moe.router.type"},
                "router default_moe keeps means of what experts give single tokens; use another, or set this null");
  rules.require(config.moe.router.type != "dense_backprop_group", {"moe.dispatch.compression", "moe.router.type"},
                "router dense_backprop_group wants what experts give single tokens; use another, or set this null");
}

}  // namespace

void check_methods(const RunConfig& config, Rules& rules) {
  check_type(config, rules);
  check_options(config, rules);
  check_single_routers(config, rules);
  check_groups(config, rules);
  check_shared_router(config, rules);
  check_top_p(config, rules);
  check_hierarchical(config, rules);
  check_losses(config, rules);
  check_policy(config, rules);
  check_merges(config, rules);
  check_compression(config, rules);
}

}  // namespace conclave::train
