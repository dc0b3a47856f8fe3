// SPDX-License-Identifier: Apache-2.0
// What experts that are merged do not go together with is refused before anything is allocated.
#include <gmock/gmock.h>

#include "config/config_files.h"
#include "train/run_config.h"

namespace conclave::train {
namespace {

using testing::HasSubstr;

const char* const kStart =
    "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n"
    "data: {train: [{name: a, path: a}], seq_len: 128}\n";

std::string refusal(const std::string& rest) {
  const ConfigFiles files;
  const auto file = files.write("run.yaml", kStart + rest);
  return config_error([&] { load_config(file, {}, {.world_size = 2}); });
}

std::string with(const std::string& moe) { return "moe: {router: {type: lory, lory: {segment: 32}}, " + moe + "}\n"; }

TEST(MergeRules, RefuseWhatChoosesDropsOrBalances) {
  EXPECT_THAT(refusal(with("top_k: 2")), HasSubstr("a merge is one expert: set top_k 1"));
  EXPECT_THAT(refusal(with("top_k: 1, capacity: {factor: 1.5}")), HasSubstr("merged experts take every token"));
  EXPECT_THAT(refusal(with("top_k: 1, balance: {losses: [{type: switch}]}")), HasSubstr("no load to balance"));
  EXPECT_THAT(refusal(with("top_k: 1, balance: {bias: {update_rate: 1e-3}}")),
              HasSubstr("does not choose by biased scores"));
  EXPECT_THAT(refusal(with("top_k: 1, experts: {dropout: 0.1}")), HasSubstr("is of experts that tokens choose"));
  EXPECT_THAT(refusal(with("top_k: 1, num_experts: 2, expert_hidden_size: [64, 32]")), HasSubstr("have one width"));
  EXPECT_THAT(refusal("moe: {top_k: 1, router: {type: lory, share: model}}\n"), HasSubstr("by its own router"));
  EXPECT_THAT(refusal("moe: {top_k: 1, router: {type: lory, context: true}}\n"), HasSubstr("taken as it is"));
  EXPECT_THAT(refusal("moe: {top_k: 1, router: {lory: {segment: 32}}}\n"), HasSubstr("options of type lory"));
}

TEST(MergeRules, RefuseToSpreadExperts) {
  for (const std::string axis : {"ep: 2", "tp: 2"})
    EXPECT_THAT(refusal(with("top_k: 1") + "parallel: {" + axis + "}\n"),
                HasSubstr("every rank merges all experts of type lory"));
}

TEST(MergeRules, AcceptTheBatchOverRanks) {
  const ConfigFiles files;
  const auto file = files.write("run.yaml", kStart + with("top_k: 1, num_shared_experts: 1"));
  EXPECT_NO_THROW(load_config(file, {}, {.world_size = 2}));
}

}  // namespace
}  // namespace conclave::train
