// SPDX-License-Identifier: Apache-2.0
// The published methods of methods.md as configurations, with their numbers of experts.
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

// What stands beside the experts, or in the router's input.
inline std::vector<Method> shape_methods() {
  using namespace moe;
  const auto balanced = [](MoeConfig& c) { c.balance.losses = {{.type = LossType::kSwitch, .coef = 0.1}}; };
  return {
      {"ContextRouter", 8, 2,
       [=](MoeConfig& c) {
         c.router.context = true;
         c.router.norm_topk_prob = true;
         balanced(c);
       }},
      {"RecurrentRouter", 8, 2,
       [=](MoeConfig& c) {
         c.router.recurrent = {.hidden_size = 8};
         balanced(c);
       }},
      {"PrMoe", 8, 1,
       [=](MoeConfig& c) {
         c.branch = Branch::kParallel;
         c.branch_gate = "softmax";
         c.num_experts = std::vector<int64_t>{4, 8};  // a pyramid over two layers
         balanced(c);
       }},
      {"Arctic", 8, 2,
       [=](MoeConfig& c) {
         c.branch = Branch::kResidual;
         c.router.norm_topk_prob = true;
         balanced(c);
       }},
      {"Generalist", 8, 2,
       [=](MoeConfig& c) {
         c.num_shared_experts = 1;
         c.shared_merge = "mean";
         c.router.norm_topk_prob = true;
         balanced(c);
       }},
      {"ExpertDropout", 8, 2,
       [=](MoeConfig& c) {
         c.experts.dropout = 0.3;
         c.capacity.factor = 1.0;
         balanced(c);
       }},
      {"Hmoe", 8, 2,
       [=](MoeConfig& c) {
         c.expert_hidden_size = std::vector<int64_t>{8, 24, 16, 40, 8, 32, 48, 16};
         c.router.top_p = 0.6;
         c.balance.losses = {{.type = LossType::kPenalty, .coef = 0.1}, {.type = LossType::kEntropy, .coef = 0.05}};
       }},
      {"Fallback", 8, 2,
       [=](MoeConfig& c) {
         c.fallback = {.hidden_size = 16};
         c.capacity.factor = 0.75;
         balanced(c);
       }},
  };
}

// What merges experts instead of choosing some.
inline std::vector<Method> merge_methods() {
  return {{"Lory", 4, 1, [](moe::MoeConfig& c) {
             c.router.type = "lory";
             c.router.lory = {.segment = 8};
           }}};
}

// Rows that travel as one. Buckets are of a rank's tokens and go by a row's last bits: no promise over tp, nor of
// anything that is not bitwise.
inline std::vector<Method> compression_methods() {
  const auto coarse = [](moe::MoeConfig& c) {
    c.dispatch.compression = {.hashes = 1, .dimensions = 2};
    c.balance.losses = {{.coef = 0.1}};
  };
  return {{"Lsh", 8, 2, coarse}, {"LshWithDrops", 8, 2, [=](moe::MoeConfig& c) {
                                    coarse(c);
                                    c.router.norm_topk_prob = true;
                                    c.capacity.factor = 1.0;
                                  }}};
}

// Routers whose logits learn as in a mixture of all experts.
inline std::vector<Method> dense_gradient_methods() {
  using namespace moe;
  return {
      {"DefaultMoe", 8, 2,
       [](MoeConfig& c) {
         c.router.type = "default_moe";
         c.router.default_moe = {.decay = 0.5};
         c.router.routed_scaling_factor = 1.5;
         c.balance.losses = {{.type = LossType::kSwitch, .coef = 0.1}, {.type = LossType::kZ, .coef = 0.1}};
       }},
      {"DenseBackpropGroup", 8, 3,
       [](MoeConfig& c) {
         c.router.type = "dense_backprop_group";
         c.router.routed_scaling_factor = 1.5;
         c.balance.bias.update_rate = 1e-3;
         c.balance.losses = {{.type = LossType::kSwitch, .coef = 0.1}, {.type = LossType::kZ, .coef = 0.1}};
       }},
  };
}

// Methods with routers, losses and drop policies of their own.
inline std::vector<Method> own_router_methods() {
  using namespace moe;
  const auto losses = [](MoeConfig& c, std::initializer_list<LossType> types) {
    for (const LossType type : types)
      c.balance.losses.push_back({.type = type, .coef = type == LossType::kL1 ? 0.01 : 0.1});
  };
  const auto capacity = [](MoeConfig& c, double factor, DropPolicy policy) {
    c.capacity.factor = factor;
    c.capacity.policy = policy;
  };
  return {
      {"GshardRandom", 8, 2,
       [=](MoeConfig& c) {
         c.router.norm_topk_prob = true;
         c.router.second = "random";
         c.router.second_threshold = 0.6;
         losses(c, {LossType::kSwitch});
       }},
      {"DeepSpeedRandomTokens", 8, 2,
       [=](MoeConfig& c) {
         capacity(c, 0.75, DropPolicy::kRandom);
         losses(c, {LossType::kSwitch});
       }},
      {"BatchPrioritised", 8, 2,
       [=](MoeConfig& c) {
         capacity(c, 0.75, DropPolicy::kBpr);
         losses(c, {LossType::kImportance});
       }},
      {"Jitter", 8, 1,
       [=](MoeConfig& c) {
         c.router.jitter = 0.3;
         losses(c, {LossType::kSwitch, LossType::kZ});
       }},
      {"DeviceLimited", 16, 4,
       [=](MoeConfig& c) {
         c.router.n_group = 4;
         c.router.topk_group = 2;
         losses(c, {LossType::kSwitch});
       }},
      {"NodeLimited", 16, 4,
       [=](MoeConfig& c) {
         c.router.score = Score::kSigmoid;
         c.router.norm_topk_prob = true;
         c.router.routed_scaling_factor = 2.5;
         c.router.n_group = 4;
         c.router.topk_group = 2;
         c.balance.bias.update_rate = 1e-3;
         losses(c, {LossType::kSwitch});
       }},
      {"NoisyTopK", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "noisy_topk";
         losses(c, {LossType::kImportance, LossType::kLoad});
       }},
      {"Hash", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "hash";
         c.router.hash.emplace().table = HashTable::kRandom;
       }},
      {"Sinkhorn", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "sinkhorn";
         losses(c, {LossType::kZ});
       }},
      {"Base", 8, 1,
       [=](MoeConfig& c) {
         c.router.type = "base";
         losses(c, {LossType::kZ});
       }},
      {"ExpertChoice", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "expert_choice";
         losses(c, {LossType::kZ});
       }},
      {"TopKSchedule", 8, 2,
       [=](MoeConfig& c) {
         c.top_k = std::vector<TopKPhase>{{.until = 1, .k = 5}, {.until = 2, .k = 3}, {.k = 2}};
         capacity(c, 1.5, DropPolicy::kPosition);
         losses(c, {LossType::kSwitch});
       }},
      {"NullExperts", 8, 4,
       [=](MoeConfig& c) {
         c.router.type = "null_experts";
         c.router.null_experts = {.count = 5, .target_k = 1.5, .update_rate = 0.01};
         losses(c, {LossType::kSwitch, LossType::kZ});
       }},
      {"ZeroCompute", 8, 3,
       [=](MoeConfig& c) {
         c.router.type = "zero_compute";
         c.router.zero_compute = {.zero = 1, .copy = 2, .constant = 2};
         capacity(c, 1.0, DropPolicy::kPosition);
         losses(c, {LossType::kSwitch, LossType::kZ});
       }},
      {"Spill", 8, 2,
       [=](MoeConfig& c) {
         capacity(c, 0.75, DropPolicy::kSpill);
         c.capacity.renormalize = true;
         losses(c, {LossType::kSwitch});
       }},
      {"SparseMixer", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "sparsemixer";
         c.router.sparsemixer.emplace().epsilon = 0.3;
         losses(c, {LossType::kSwitch});
       }},
      {"Hierarchical", 8, 4,
       [=](MoeConfig& c) {
         c.router.type = "hierarchical";
         c.router.hierarchical = {.groups = 4, .group_k = 2};
         losses(c, {LossType::kSwitch, LossType::kImportance});
       }},
      {"DeviceLosses", 16, 4,
       [=](MoeConfig& c) {
         c.router.n_group = 4;
         c.router.topk_group = 2;
         losses(c, {LossType::kDevice, LossType::kCommunication});
         for (auto& loss : c.balance.losses) loss.devices = 4;
         c.balance.losses[1].max_devices = 2;
       }},
      {"TopP", 8, 2,
       [=](MoeConfig& c) {
         c.router.top_p = 0.6;
         c.router.norm_topk_prob = true;
         losses(c, {LossType::kEntropy, LossType::kSwitch, LossType::kVariance});
       }},
      {"FrozenRouter", 8, 2,
       [=](MoeConfig& c) {
         c.router.frozen = true;
         losses(c, {LossType::kSwitch});
       }},
      {"OmniRouter", 8, 2,
       [=](MoeConfig& c) {
         c.router.share = "model";
         losses(c, {LossType::kSwitch});
       }},
      {"ReMoe", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "relu";
         losses(c, {LossType::kL1});
         c.balance.losses[0].l1.emplace().start = 0.05;
       }},
  };
}

// Combinations of options of methods above.
inline std::vector<Method> combined_methods() {
  using namespace moe;
  const auto drops = [](MoeConfig& c, DropPolicy policy) {
    c.capacity.factor = 0.75;
    c.capacity.policy = policy;
    c.balance.losses = {{.coef = 0.1}};
  };
  return {
      {"GshardSlot", 8, 2,
       [=](MoeConfig& c) {
         c.router.norm_topk_prob = true;
         c.router.second = "random";
         c.router.second_threshold = 0.6;
         drops(c, DropPolicy::kSlot);
       }},
      {"RandomTokensRenormalised", 8, 2,
       [=](MoeConfig& c) {
         drops(c, DropPolicy::kRandom);
         c.capacity.renormalize = true;
       }},
      {"HashPrevious", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "hash";
         c.router.hash.emplace().feature = HashFeature::kPrevious;
       }},
      {"HashBalanced", 8, 2,
       [=](MoeConfig& c) {
         c.router.type = "hash";
         c.router.hash.emplace().table = HashTable::kBalanced;
       }},
      {"GumbelSample", 8, 1,
       [=](MoeConfig& c) {
         c.router.noise = "gumbel";
         drops(c, DropPolicy::kPosition);
       }},
      {"GumbelSecond", 8, 2,
       [=](MoeConfig& c) {
         c.router.norm_topk_prob = true;
         c.router.second = "gumbel";
         drops(c, DropPolicy::kSlot);
         c.capacity.renormalize = true;
       }},
      {"DeviceDrop", 8, 2,
       [=](MoeConfig& c) {
         c.router.norm_topk_prob = true;
         drops(c, DropPolicy::kDevice);
         c.capacity.devices = 2;
       }},
      {"BiasProportionalCentred", 8, 2,
       [=](MoeConfig& c) {
         c.router.score = Score::kSigmoid;
         c.router.norm_topk_prob = true;
         c.balance.bias = {.update_rate = 0.05, .rule = BiasRule::kProportional, .center = true};
       }},
      {"MixtralModelScope", 8, 2,
       [=](MoeConfig& c) {
         c.router.score_before_topk = false;
         c.balance.losses = {{.coef = 0.1, .convention = Convention::kHuggingface, .scope = Scope::kModel}};
       }},
  };
}

// All three.
inline std::vector<Method> router_methods() {
  auto methods = own_router_methods();
  for (const auto& more : {combined_methods(), dense_gradient_methods(), shape_methods()})
    methods.insert(methods.end(), more.begin(), more.end());
  return methods;
}

}  // namespace conclave::testing
