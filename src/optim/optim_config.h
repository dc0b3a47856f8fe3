// SPDX-License-Identifier: Apache-2.0
// The `optim:` section.
#pragma once

#include "config/types.h"

namespace conclave::optim {

enum class ScheduleType { kCosine, kLinear, kConstant, kWsd };

struct OptimConfig {
  std::string type = "adamw";
  double lr = 3e-4;
  double min_lr = 3e-5;
  std::vector<double> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  std::vector<std::string> no_decay = {"norm", "bias", "router_bias"};
  double grad_clip = 1.0;
  ScheduleType schedule = ScheduleType::kCosine;
  config::StepCount warmup{200, {}};
  std::optional<config::StepCount> decay;

  void fields(auto&& field) {
    field("type", type, "adamw");
    field("lr", lr, "peak learning rate", config::kPositive);
    field("min_lr", min_lr, "learning rate at the end of the decay", config::kNotNegative);
    field("betas", betas, "AdamW's decay rates of the first and second moment", config::kDecayRate);
    field("eps", eps, "AdamW's epsilon", config::kPositive);
    field("weight_decay", weight_decay, "decoupled weight decay", config::kNotNegative);
    field("no_decay", no_decay, "kinds of parameters without decay: norm, bias, router_bias, embedding, router");
    field("grad_clip", grad_clip, "largest global gradient norm; 0 = no clipping", config::kNotNegative);
    field("schedule", schedule, "shape of the learning rate after warm-up");
    field("warmup", warmup, "linear warm-up: steps, or a share of train.steps", config::kNotNegative);
    field("decay", decay, "steps of the decay; null = all that follow warm-up (wsd: the last 10%)",
          config::kNotNegative);
  }
};

}  // namespace conclave::optim

namespace conclave::config {
template <>
struct EnumNames<optim::ScheduleType> {
  static constexpr std::array<std::pair<std::string_view, optim::ScheduleType>, 4> kNames{
      {{"cosine", optim::ScheduleType::kCosine},
       {"linear", optim::ScheduleType::kLinear},
       {"constant", optim::ScheduleType::kConstant},
       {"wsd", optim::ScheduleType::kWsd}}};
};
}  // namespace conclave::config
