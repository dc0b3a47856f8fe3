// SPDX-License-Identifier: Apache-2.0
// What single routers need of the rest of the configuration. Which keys mean anything with which type is in
// method_rules.cpp.
#include "config/fields.h"
#include "train/config_rules.h"

namespace conclave::train {
namespace {

void check_nulls(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  if (router.type != "null_experts") return;
  rules.require(router.null_experts.has_value(), {"moe.router.null_experts", "moe.router.type"},
                "type null_experts needs null_experts: {count: ...}");
  const auto chosen = static_cast<double>(config.moe.top_k * config.moe.granularity);
  rules.require(!router.null_experts || router.null_experts->target_k.value_or(chosen) <= chosen,
                {"moe.router.null_experts.target_k", "moe.top_k"},
                fmt::format("a token takes {} experts, null ones included, so it cannot use more true ones", chosen));
}

void check_zero_compute(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  if (router.type != "zero_compute") return;
  const moe::ZeroComputeConfig own = router.zero_compute.value_or(moe::ZeroComputeConfig());
  rules.require(own.zero + own.copy + own.constant > 0, {"moe.router.zero_compute", "moe.router.type"},
                "there is no zero-compute expert; use type topk");
}

void check_base(const RunConfig& config, Rules& rules) {
  if (config.moe.router.type != "base") return;
  rules.require(config.moe.top_k.most() * config.moe.granularity == 1, {"moe.top_k", "moe.router.type"},
                "type base assigns each token to one expert: set top_k 1 and granularity 1");
  rules.require(!config.moe.capacity.factor, {"moe.capacity.factor", "moe.router.type"},
                "experts of moe.router.type base take T / E tokens each; remove this");
}

void check_context(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  rules.require(!router.context || router.jitter == 0, {"moe.router.context", "moe.router.jitter"},
                "a router with a context sees its input as it is; set jitter 0");
}

void check_recurrent(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  if (!router.recurrent) return;
  rules.require(!router.context, {"moe.router.recurrent", "moe.router.context"},
                "the router reads either a state or its input and a context; set context false");
  rules.require(router.jitter == 0, {"moe.router.recurrent", "moe.router.jitter"},
                "a router with a state sees its input as it is; set jitter 0");
  rules.require(router.share == "layer", {"moe.router.recurrent", "moe.router.share"},
                "layers share the unit that carries the state, and have routers of their own; set share layer");
  rules.warn_if(config.moe.enabled && count_moe_layers(config) == 1, {"moe.router.recurrent"},
                "the one MoE layer has no state of an earlier one");
}

void check_grouped(const RunConfig& config, Rules& rules) {
  if (config.moe.router.type != "dense_backprop_group") return;
  rules.require(
      least_top_k(config.moe) > 1, {"moe.top_k", "moe.router.type"},
      "with one expert for each token none has another expert beside a shared one, so that nothing stands in; "
      "use type topk");
  rules.require(!config.moe.capacity.factor, {"moe.capacity.factor", "moe.router.type"},
                "what stands in is the mean over all that chose an expert, and a capacity refuses some; set null");
}

void check_hash(const RunConfig& config, Rules& rules) {
  if (!config.moe.router.hash) return;
  const moe::HashConfig& hash = *config.moe.router.hash;
  const std::string embeddings = "moe.router.hash.embeddings", table = "moe.router.hash.table";
  const std::string name(config::enum_name(hash.table));
  const bool compares = hash.table == moe::HashTable::kClustered || hash.table == moe::HashTable::kDispersed;
  rules.require(
      !compares || hash.embeddings, {table, embeddings},
      fmt::format("table {} groups token ids by their embeddings; name a run that has them in {}", name, embeddings));
  rules.require(
      compares || !hash.embeddings, {embeddings, table},
      fmt::format("tables clustered and dispersed read a run's embeddings, table {} does not; remove this, or "
                  "choose one of those",
                  name));
  rules.require(!hash.embeddings || !hash.embeddings->empty(), {embeddings},
                "names no run; give the directory of one, or of a checkpoint");
  rules.warn_if(hash.sample != moe::HashConfig().sample && hash.table != moe::HashTable::kBalanced,
                {"moe.router.hash.sample", table},
                fmt::format("has no effect: table {} counts no tokens, balanced does", name));
}

// Gumbel noise draws from the softmax of the logits, and from nothing else.
void check_gumbel(const RunConfig& config, Rules& rules) {
  const moe::RouterConfig& router = config.moe.router;
  const std::string noise = "moe.router.noise", second = "moe.router.second";
  rules.one_of(noise, router.noise, {"none", "gumbel"});
  const bool sampled = router.noise == "gumbel";
  const int64_t chosen = config.moe.top_k.most() * config.moe.granularity;
  rules.require(!sampled || chosen == 1, {noise, "moe.top_k"},
                fmt::format("gumbel draws the one expert of a token, and moe.top_k takes {}; set top_k 1, or for two "
                            "experts moe.router.second: gumbel",
                            chosen));
  if (!sampled && router.second != "gumbel") return;
  const std::string own = sampled ? noise : second;
  rules.require(router.score == moe::Score::kSoftmax, {own, "moe.router.score"},
                "gumbel draws from a softmax of the logits; set moe.router.score softmax");
  rules.require(router.n_group == 1, {own, "moe.router.n_group"},
                "gumbel draws from all experts, those of other groups included; set n_group 1");
  rules.require(!router.top_p, {own, "moe.router.top_p"}, "gumbel draws a fixed number of experts; set top_p null");
  rules.require(config.moe.balance.bias.update_rate == 0, {own, "moe.balance.bias.update_rate"},
                "gumbel draws from logits without a bias; set update_rate 0");
  rules.require(!sampled || config.model.init != model::Init::kMup, {own, "model.init"},
                "mup knows no factor for the weight of an expert that is drawn; set noise none, or model.init: normal");
}

}  // namespace

void check_single_routers(const RunConfig& config, Rules& rules) {
  check_nulls(config, rules);
  check_zero_compute(config, rules);
  check_base(config, rules);
  check_context(config, rules);
  check_recurrent(config, rules);
  check_grouped(config, rules);
  check_hash(config, rules);
  check_gumbel(config, rules);
}

}  // namespace conclave::train
