// SPDX-License-Identifier: Apache-2.0
// Combinations of balancing and dropping that have no meaning, or none yet, are refused before anything is allocated.
#include <gmock/gmock.h>

#include "config/config_files.h"
#include "train/run_config.h"

namespace conclave::train {
namespace {

using testing::HasSubstr;

const char* const kStart =
    "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n"
    "data: {train: [{name: a, path: a}], seq_len: 128}\n";

std::string refusal(const std::string& moe) {
  const ConfigFiles files;
  const auto file = files.write("run.yaml", kStart + moe);
  return config_error([&] { load_config(file, {}, {}); });
}

void expect_accepted(const std::string& moe) {
  const ConfigFiles files;
  EXPECT_NO_THROW(load_config(files.write("run.yaml", kStart + moe), {}, {})) << moe;
}

TEST(BalanceRules, GlobalLevelNeedsAConventionThatCountsAllChoices) {
  for (const std::string convention : {"switch", "gshard", "deepspeed", "huggingface"}) {
    for (const std::string level : {"global", "sequence"}) {
      for (const std::string k : {"1", "2", "3"}) {
        const std::string moe =
            "moe: {top_k: " + k + ", balance: {losses: [{level: " + level + ", convention: " + convention + "}]}}\n";
        EXPECT_THAT(refusal(moe), HasSubstr("the convention '" + convention + "' is defined for level micro only"));
      }
    }
    expect_accepted("moe: {balance: {losses: [{convention: " + convention + "}]}}\n");
  }
  for (const std::string convention : {"megatron", "deepseek"})
    expect_accepted("moe: {balance: {losses: [{level: global, convention: " + convention + "}]}}\n");
}

TEST(BalanceRules, ModelScopeNeedsEqualExpertsInAllLayers) {
  const std::string loss = "balance: {losses: [{convention: huggingface, scope: model}]}}\n";
  EXPECT_THAT(refusal("moe: {num_experts: [4, 8], " + loss), HasSubstr("each must have the same number of experts"));
  expect_accepted("moe: {num_experts: [8, 8], " + loss);
  expect_accepted("moe: {num_experts: 8, " + loss);
  expect_accepted("moe: {num_experts: [4, 8], balance: {losses: [{convention: huggingface}]}}\n");
}

TEST(BalanceRules, APenaltyNeedsScoresOfExpertsThatCompute) {
  const std::string penalty = "balance: {losses: [{type: penalty, coef: 0.1}]}";
  expect_accepted("moe: {num_experts: 4, expert_hidden_size: [8, 16, 24, 32], " + penalty + "}\n");
  expect_accepted("moe: {router: {type: noisy_topk}, top_k: 1, " + penalty + "}\n");
  for (const std::string type : {"relu", "hash", "sinkhorn", "expert_choice", "zero_compute"})
    EXPECT_THAT(refusal("moe: {router: {type: " + type + "}, " + penalty + "}\n"),
                HasSubstr("a penalty needs scores that it may even out, of experts with a width"));
}

TEST(BalanceRules, SpillNeedsOneOrderOfAllExperts) {
  const std::string spill = "capacity: {factor: 1, policy: spill, spill: {hops: 2}}";
  expect_accepted("moe: {" + spill + "}\n");
  expect_accepted("moe: {" + spill + ", router: {type: noisy_topk}}\n");
  EXPECT_THAT(refusal("moe: {" + spill + ", router: {type: relu}}\n"), HasSubstr("does not go by"));
  EXPECT_THAT(refusal("moe: {" + spill + ", router: {n_group: 2, topk_group: 2}}\n"),
              HasSubstr("out of their groups of experts"));
  EXPECT_THAT(refusal("moe: {" + spill + ", router: {second: random}}\n"), HasSubstr("that a token declines"));
  EXPECT_THAT(refusal("moe: {" + spill + ", balance: {bias: {update_rate: 0.1}}}\n"), HasSubstr("without a bias"));
  EXPECT_THAT(refusal("moe: {capacity: {factor: 1, spill: {hops: 2}}}\n"), HasSubstr("options of policy spill"));
}

TEST(BalanceRules, AFrozenOrSharedRouterNeedsWeights) {
  expect_accepted("moe: {router: {frozen: true, share: model}}\n");
  EXPECT_THAT(refusal("moe: {router: {type: hash, frozen: true}}\n"),
              HasSubstr("means nothing to moe.router.type hash"));
  EXPECT_THAT(refusal("moe: {router: {type: hash, share: model}}\n"),
              HasSubstr("means nothing to moe.router.type hash"));
  EXPECT_THAT(refusal("moe: {num_experts: [4, 8], router: {share: model}}\n"), HasSubstr("the same number of experts"));
  EXPECT_THAT(refusal("moe: {router: {share: block}}\n"), HasSubstr("moe.router.share"));
}

TEST(BalanceRules, TwoLevelsNeedEqualGroups) {
  expect_accepted("moe: {top_k: 4, router: {type: hierarchical, hierarchical: {groups: 4, group_k: 2}}}\n");
  EXPECT_THAT(refusal("moe: {router: {type: hierarchical}}\n"), HasSubstr("needs hierarchical: {groups"));
  EXPECT_THAT(refusal("moe: {router: {type: hierarchical, hierarchical: {groups: 3}}}\n"), HasSubstr("3 equal groups"));
  EXPECT_THAT(refusal("moe: {top_k: 3, router: {type: hierarchical, hierarchical: {groups: 4, group_k: 2}}}\n"),
              HasSubstr("cannot give equally many of 3 experts"));
  EXPECT_THAT(refusal("moe: {router: {type: hierarchical, hierarchical: {groups: 8}}}\n"), HasSubstr("of at least 2"));
  EXPECT_THAT(
      refusal("moe: {router: {type: hierarchical, hierarchical: {groups: 2}}, balance: {losses: [{type: z}]}}\n"),
      HasSubstr("one softmax or sigmoid"));
}

TEST(BalanceRules, LossesOverDevicesNeedDevices) {
  const auto loss = [](const std::string& keys) { return "moe: {balance: {losses: [{" + keys + "}]}}\n"; };
  expect_accepted(loss("type: device, devices: 4"));
  expect_accepted(loss("type: communication, devices: 4, max_devices: 2"));
  EXPECT_THAT(refusal(loss("type: device")), HasSubstr("needs devices"));
  EXPECT_THAT(refusal(loss("type: device, devices: 3")), HasSubstr("3 equal groups"));
  EXPECT_THAT(refusal(loss("type: communication, devices: 4")), HasSubstr("needs max_devices"));
  EXPECT_THAT(refusal(loss("type: communication, devices: 4, max_devices: 5")),
              HasSubstr("more devices than there are"));
  EXPECT_THAT(refusal(loss("devices: 4")), HasSubstr("this loss has another type"));
}

TEST(BalanceRules, TopPNeedsASoftmaxOverAllExperts) {
  expect_accepted("moe: {router: {top_p: 0.6}}\n");
  EXPECT_THAT(refusal("moe: {router: {top_p: 0.6, score: sigmoid}}\n"), HasSubstr("a softmax over all experts"));
  EXPECT_THAT(refusal("moe: {router: {top_p: 0.6, second: random}}\n"), HasSubstr("no second one"));
  EXPECT_THAT(refusal("moe: {router: {type: relu, top_p: 0.6}}\n"), HasSubstr("means nothing"));
  EXPECT_THAT(refusal("moe: {router: {top_p: 0.6}, balance: {bias: {update_rate: 0.1}}}\n"),
              HasSubstr("without a bias"));
}

TEST(BalanceRules, ARandomSecondExpertNeedsASecond) {
  expect_accepted("moe: {router: {second: random}}\n");
  EXPECT_THAT(refusal("moe: {top_k: 1, router: {second: random}}\n"), HasSubstr("needs 2 experts"));
  expect_accepted("moe: {router: {second: gumbel}}\n");
  EXPECT_THAT(refusal("moe: {top_k: 1, router: {second: gumbel}}\n"), HasSubstr("moe.router.second"));
}

}  // namespace
}  // namespace conclave::train
