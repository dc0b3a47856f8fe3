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

TEST(BalanceRules, PoliciesThatAreNotBuiltAreRefused) {
  EXPECT_THAT(refusal("moe: {capacity: {factor: 1, policy: spill}}\n"),
              HasSubstr("'spill'; built so far: position, slot, score, random, bpr"));
}

TEST(BalanceRules, ARandomSecondExpertNeedsASecond) {
  expect_accepted("moe: {router: {second: random}}\n");
  EXPECT_THAT(refusal("moe: {top_k: 1, router: {second: random}}\n"), HasSubstr("needs 2 experts"));
  EXPECT_THAT(refusal("moe: {router: {second: gumbel}}\n"), HasSubstr("moe.router.second"));
}

}  // namespace
}  // namespace conclave::train
