// SPDX-License-Identifier: Apache-2.0
// The published methods of methods.md that the top-k router expresses, as configurations with their numbers of experts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "moe/moe_config.h"

namespace conclave::testing {

struct Method {
  std::string name;
  int64_t experts, top_k;
  std::function<void(moe::MoeConfig&)> change;

  moe::MoeConfig config() const {
    moe::MoeConfig config;
    config.num_experts = experts;
    config.top_k = top_k;
    config.capacity.min = 1;
    change(config);
    return config;
  }
};
inline std::ostream& operator<<(std::ostream& out, const Method& method) { return out << method.name; }

inline std::vector<Method> all_methods() {
  using namespace moe;
  const auto capacity = [](MoeConfig& c, double factor, DropPolicy policy) {
    c.capacity.factor = factor;
    c.capacity.policy = policy;
  };
  return {
      {"GenericGate", 8, 3, [](MoeConfig&) {}},
      {"Switch", 8, 1, [=](MoeConfig& c) { capacity(c, 1.25, DropPolicy::kPosition); }},
      {"Gshard", 8, 2,
       [=](MoeConfig& c) {
         c.router.norm_topk_prob = true;
         capacity(c, 1.0, DropPolicy::kPosition);
       }},
      {"Mixtral", 8, 2, [](MoeConfig& c) { c.router.score_before_topk = false; }},
      {"Dbrx", 16, 4, [](MoeConfig& c) { c.router.norm_topk_prob = true; }},
      {"DeepSeekMoe", 16, 6, [](MoeConfig& c) { c.num_shared_experts = 2; }},
      {"DeepSeekV3", 16, 4,
       [](MoeConfig& c) {
         c.router.score = Score::kSigmoid;
         c.router.norm_topk_prob = true;
         c.router.routed_scaling_factor = 2.5;
         c.balance.bias.update_rate = 1e-3;
       }},
      {"DeepSpeedDrop", 8, 2,
       [=](MoeConfig& c) {
         capacity(c, 0.75, DropPolicy::kPosition);
         c.capacity.renormalize = true;
       }},
      {"ScoreDrop", 8, 2, [=](MoeConfig& c) { capacity(c, 0.75, DropPolicy::kScore); }},
      {"ScoreDropScaled", 8, 2,
       [=](MoeConfig& c) {
         c.router.routed_scaling_factor = 1.5;
         capacity(c, 0.75, DropPolicy::kScore);
         c.capacity.renormalize = true;
       }},
  };
}

}  // namespace conclave::testing
