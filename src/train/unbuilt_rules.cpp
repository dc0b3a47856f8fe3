// SPDX-License-Identifier: Apache-2.0
// Keys of the normative YAML whose feature is not built yet. They are refused with the reason, never ignored; the work
// that builds a feature deletes its line here.
#include "config/fields.h"
#include "train/config_rules.h"

namespace conclave::train {
namespace {

template <typename E>
void only(Rules& rules, const std::string& key, E value, std::initializer_list<E> built) {
  if (std::find(built.begin(), built.end(), value) != built.end()) return;
  std::vector<std::string> names;
  for (const E known : built) names.emplace_back(config::enum_name(known));
  rules.unbuilt(true, key, fmt::format("'{}'; built so far: {}", config::enum_name(value), fmt::join(names, ", ")));
}

void check_model_keys(const RunConfig& config, Rules& rules) {
  const model::ModelConfig& model = config.model;
  only(rules, "model.norm_placement", model.norm_placement, {model::NormPlacement::kPre});
}

void check_moe_keys(const RunConfig& config, Rules& rules) {
  const moe::MoeConfig& moe = config.moe;
  rules.one_of("moe.router.dtype", moe.router.dtype, {"fp32"}, {"fp64"});
  rules.unbuilt(moe.router.record.has_value(), "moe.router.record", "recording expert ids");
  rules.unbuilt(moe.router.replay.has_value(), "moe.router.replay", "replaying expert ids");
  rules.one_of("moe.experts.backend", moe.experts.backend, {"auto"});
}

void check_method_keys(const RunConfig& config, Rules& rules) {
  const moe::MoeConfig& moe = config.moe;
  rules.unbuilt(!moe.sets.empty(), "moe.sets", "expert sets; use num_experts, top_k and expert_hidden_size");
  rules.unbuilt(moe.dispatch.placement.has_value(), "moe.dispatch.placement", "experts away from their owner");
  rules.unbuilt(moe.router.topology.has_value(), "moe.router.topology", "a bound on picks between hosts");
  rules.unbuilt(moe.router.logit_offset, "moe.router.logit_offset", "a constant of each expert's logit");
  for (size_t l = 0; l < moe.balance.losses.size(); ++l)
    rules.unbuilt(moe.balance.losses[l].type == moe::LossType::kOrthogonality,
                  fmt::format("moe.balance.losses[{}].type", l), "the orthogonality loss");
  if (moe.router.default_moe)
    rules.unbuilt(!moe.router.default_moe->update_after_use, "moe.router.default_moe.update_after_use",
                  "means of the same step");
}

void check_parallel_keys(const RunConfig& config, Rules& rules) {
  const parallel::ParallelConfig& mesh = config.parallel;
  rules.unbuilt(mesh.cp != 1, "parallel.cp", "context parallelism; use dp, tp and ep");
  rules.unbuilt(mesh.pp != 1, "parallel.pp", "pipeline parallelism; use dp, tp and ep");
  rules.require(mesh.zero == 0 || mesh.zero == 1, {"parallel.zero"}, "must be 0 or 1");
}

}  // namespace

void check_unbuilt(const RunConfig& config, Rules& rules) {
  check_model_keys(config, rules);
  check_moe_keys(config, rules);
  check_method_keys(config, rules);
  check_parallel_keys(config, rules);
  rules.one_of("data.packing", config.data.packing, {"concat"}, {"best_fit", "pad"});
  rules.one_of("optim.type", config.optim.type, {"adamw"}, {"adam", "sgd", "lion", "muon", "adafactor"});
  rules.one_of("train.precision", config.train.precision, {"auto", "fp32", "bf16"}, {"fp16", "fp8"});
  rules.unbuilt(config.checkpoint.async, "checkpoint.async", "saving while training goes on; set false");
  rules.one_of("checkpoint.verify", config.checkpoint.verify, {"full"}, {"sizes", "none"});
  rules.unbuilt(config.metrics.tensorboard, "metrics.tensorboard", "TensorBoard files; metrics.jsonl has every value");
}

}  // namespace conclave::train
