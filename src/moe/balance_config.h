// SPDX-License-Identifier: Apache-2.0
// The section `moe.balance:` losses and the bias that keep load even.
#pragma once

#include "config/types.h"

namespace conclave::moe {

enum class LossType {
  kSwitch,
  kZ,
  kImportance,
  kLoad,
  kL1,
  kDevice,
  kCommunication,
  kVariance,
  kEntropy,
  kPenalty,
  kOrthogonality
};
enum class Level { kMicro, kSequence, kGlobal };
enum class Convention { kMegatron, kSwitch, kGshard, kDeepspeed, kHuggingface, kDeepseek };
enum class Scope { kLayer, kModel };
enum class BiasRule { kSign, kProportional };

// The adaptive coefficient of the L1 loss (ReMoE).
struct L1Config {
  double start = 1e-8;
  double rate = 1.2;
  bool balance = true;
  void fields(auto&& field) {
    field("start", start, "coefficient of the first step", config::kPositive);
    field("rate", rate, "factor by which a step raises or lowers it", config::Rule{.min = 1, .above_min = true});
    field("balance", balance, "weigh each expert's part by its share of the picks");
  }
};

struct BalanceLoss {
  LossType type = LossType::kSwitch;
  double coef = 0.01;
  Level level = Level::kMicro;
  Convention convention = Convention::kMegatron;
  Scope scope = Scope::kLayer;
  std::optional<int64_t> devices = {};
  std::optional<int64_t> max_devices = {};
  std::optional<L1Config> l1 = {};

  void fields(auto&& field) {
    field(
        "type", type,
        "switch = load balance, z = router z-loss, importance and load = squared variation, l1 = sparsity, device and "
        "communication = over groups of experts, variance = of the weights, entropy = of the scores, penalty = load "
        "balance by widths of experts, orthogonality = of what the experts of a token give");
    field("coef", coef, "coefficient; l1 has its own", config::kNotNegative);
    field("level", level, "where expert counts are taken: micro-batch, sequence, or global (counts of the last step)");
    field("convention", convention, "whose scale of the loss");
    field("scope", scope, "layer = each layer its own loss, model = all layers together (transformers)");
    field("devices", devices, "types device and communication: equal groups of neighbouring experts", config::kSize);
    field("max_devices", max_devices, "type communication: groups that a token is meant to use", config::kSize);
    field("l1", l1, "options of type l1");
  }
};

struct BiasConfig {
  double update_rate = 0.0;
  BiasRule rule = BiasRule::kSign;
  bool center = false;

  void fields(auto&& field) {
    field("update_rate", update_rate, "step of the loss-free bias per optimizer step; 0 = off", config::kNotNegative);
    field("rule", rule, "sign or proportional");
    field("center", center, "subtract the mean bias after each update");
  }
};

struct BalanceConfig {
  std::vector<BalanceLoss> losses;
  BiasConfig bias;

  void fields(auto&& field) {
    field("losses", losses, "auxiliary losses, any number");
    field("bias", bias, "loss-free balancing");
  }
};

}  // namespace conclave::moe

namespace conclave::config {
template <>
struct EnumNames<moe::LossType> {
  static constexpr std::array<std::pair<std::string_view, moe::LossType>, 11> kNames{
      {{"switch", moe::LossType::kSwitch},
       {"z", moe::LossType::kZ},
       {"importance", moe::LossType::kImportance},
       {"load", moe::LossType::kLoad},
       {"l1", moe::LossType::kL1},
       {"device", moe::LossType::kDevice},
       {"communication", moe::LossType::kCommunication},
       {"variance", moe::LossType::kVariance},
       {"entropy", moe::LossType::kEntropy},
       {"penalty", moe::LossType::kPenalty},
       {"orthogonality", moe::LossType::kOrthogonality}}};
};
template <>
struct EnumNames<moe::Level> {
  static constexpr std::array<std::pair<std::string_view, moe::Level>, 3> kNames{
      {{"micro", moe::Level::kMicro}, {"sequence", moe::Level::kSequence}, {"global", moe::Level::kGlobal}}};
};
template <>
struct EnumNames<moe::Convention> {
  static constexpr std::array<std::pair<std::string_view, moe::Convention>, 6> kNames{
      {{"megatron", moe::Convention::kMegatron},
       {"switch", moe::Convention::kSwitch},
       {"gshard", moe::Convention::kGshard},
       {"deepspeed", moe::Convention::kDeepspeed},
       {"huggingface", moe::Convention::kHuggingface},
       {"deepseek", moe::Convention::kDeepseek}}};
};
template <>
struct EnumNames<moe::Scope> {
  static constexpr std::array<std::pair<std::string_view, moe::Scope>, 2> kNames{
      {{"layer", moe::Scope::kLayer}, {"model", moe::Scope::kModel}}};
};
template <>
struct EnumNames<moe::BiasRule> {
  static constexpr std::array<std::pair<std::string_view, moe::BiasRule>, 2> kNames{
      {{"sign", moe::BiasRule::kSign}, {"proportional", moe::BiasRule::kProportional}}};
};
}  // namespace conclave::config
