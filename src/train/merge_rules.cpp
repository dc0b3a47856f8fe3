// SPDX-License-Identifier: Apache-2.0
// Rules about experts that are merged instead of chosen (moe.router.type lory).
#include "train/config_rules.h"

namespace conclave::train {
namespace {

void check_choices(const RunConfig& config, Rules& rules) {
  const moe::MoeConfig& moe = config.moe;
  const std::string type = "moe.router.type";
  rules.require(moe.top_k.most() == 1 && moe.granularity == 1, {"moe.top_k", "moe.granularity", type},
                "a merge is one expert: set top_k 1 and granularity 1");
  rules.require(!moe.capacity.factor && !moe.capacity.eval_factor,
                {"moe.capacity.factor", "moe.capacity.eval_factor", type},
                "merged experts take every token; remove this");
  rules.require(moe.balance.losses.empty(), {"moe.balance.losses", type},
                "merged experts have no load to balance; remove this or set []");
  rules.require(!moe.fallback, {"moe.fallback", type}, "merged experts refuse no token; remove this");
  rules.require(moe.experts.dropout == 0, {"moe.experts.dropout", type}, "is of experts that tokens choose; set 0");
  rules.require(!moe.expert_hidden_size || moe.expert_hidden_size->each() == nullptr, {"moe.expert_hidden_size", type},
                "experts that are merged have one width: give one number");
  rules.require(moe.router.routed_scaling_factor == 1, {"moe.router.routed_scaling_factor", type},
                "shares of a merge add up to one; remove this");
  rules.require(!moe.dispatch.compression, {"moe.dispatch.compression", type}, "merged experts are sent no rows");
  rules.require(moe.router.share == "layer", {"moe.router.share", type}, "each layer merges by its own router");
  rules.require(!moe.router.context && !moe.router.recurrent && moe.router.jitter == 0,
                {"moe.router.context", "moe.router.recurrent", "moe.router.jitter", type},
                "the mean of a segment is taken as it is; remove this");
}

}  // namespace

void check_merges(const RunConfig& config, Rules& rules) {
  if (config.moe.router.type != "lory" || !config.moe.enabled) return;
  check_choices(config, rules);
  const parallel::ParallelConfig& mesh = config.parallel;
  rules.require(mesh.ep == 1 && mesh.etp == 1 && mesh.tp == 1,
                {"parallel.ep", "parallel.etp", "parallel.tp", "moe.router.type"},
                "every rank merges all experts of type lory: set ep, etp and tp 1 and spread the batch (dp)");
  const moe::LoryConfig lory = config.moe.router.lory.value_or(moe::LoryConfig());
  rules.warn_if(lory.first == moe::FirstSegment::kOwn, {"moe.router.lory.first"},
                "in training a document's first segment depends on its own later tokens (class C3), so training losses "
                "are optimistic; evaluation takes all experts alike there");
  rules.warn_if(
      lory.segment >= config.data.seq_len, {"moe.router.lory.segment", "data.seq_len"},
      fmt::format("a sequence of {} tokens has one segment, so that the router decides nothing", config.data.seq_len));
}

}  // namespace conclave::train
