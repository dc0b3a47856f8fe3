// SPDX-License-Identifier: Apache-2.0
#include "train/run_result.h"

#include "checkpoint/digest.h"
#include "config/json.h"
#include "train/trainer.h"

namespace conclave::train {

double planned_flops(const RunConfig& config, model::Counter counter) {
  const auto step_tokens = static_cast<double>(config.train.global_batch_size * config.data.seq_len);
  double flops = 0;
  int64_t from = 0;
  // The dense twin is as wide as the last number of experts in every step.
  const std::vector<moe::TopKPhase> twin{{.k = config.moe.top_k}};
  for (const auto& phase : config.moe.enabled ? config.moe.top_k.phases() : twin) {
    moe::MoeConfig moe = config.moe;
    moe.top_k = phase.k;
    const int64_t until = std::min(phase.until.value_or(config.train.steps), config.train.steps);
    const auto of_token = model::count_flops(model::model_shape(config.model, moe), counter, config.data.seq_len);
    flops += static_cast<double>(of_token.training()) * (static_cast<double>(until - from) * step_tokens);
    from = until;
  }
  return flops;
}

int64_t planned_tokens(const RunConfig& config) {
  return config.train.steps * config.train.global_batch_size * config.data.seq_len;
}

std::string config_digest(const RunConfig& config) {
  auto json = config::to_json(config);  // keys sorted
  for (const char* section : {"parallel", "comm", "metrics", "checkpoint", "memory"}) json.erase(section);
  json["eval"].erase("every");
  for (const char* key : {"device", "max_time", "hang_timeout", "profile"}) json["train"].erase(key);
  return checkpoint::xxh3(json.dump()).hex();
}

nlohmann::ordered_json run_result(const Trainer& trainer, const RunConfig& config, int64_t peak_bytes) {
  const auto shape = model::model_shape(config.model, config.moe);
  const auto parameters = model::count_parameters(shape, model::Counter::kExact);
  auto evaluations = nlohmann::ordered_json::array();
  for (const auto& result : trainer.last_evaluation()) {
    evaluations.push_back({{"source", result.source},
                           {"loss", result.loss},
                           {"loss_hex", fmt::format("{:a}", result.loss)},
                           {"tokens", result.targets}});
  }
  const double loss = trainer.metrics().last_loss();
  return {{"format", "conclave-result"},
          {"version", 1},
          {"config_digest", config_digest(config)},
          {"step", config.train.steps},
          {"tokens", planned_tokens(config)},
          {"flops",
           {{"paper", planned_flops(config, model::Counter::kPaper)},
            {"exact", planned_flops(config, model::Counter::kExact)}}},
          {"parameters", {{"total", parameters.total()}, {"active", parameters.active()}}},
          {"loss", loss},
          {"loss_hex", fmt::format("{:a}", loss)},
          {"evaluation", evaluations},
          {"attempt", {{"first_step", trainer.first_step() + 1}, {"seconds", trainer.seconds()}}},
          {"peak_bytes", peak_bytes},
          {"state", trainer.state_digest()}};
}

}  // namespace conclave::train
