// SPDX-License-Identifier: Apache-2.0
#include "train/run_config.h"

#include <gmock/gmock.h>

#include "config/config_files.h"
#include "config/fields.h"
#include "config/yaml.h"

namespace conclave::train {
namespace {

using config::Override;
using testing::HasSubstr;

const char* const kModel = "model: {vocab_size: 512, hidden_size: 64, num_layers: 2, num_attention_heads: 4}\n";
const char* const kData = "data: {train: [{name: a, path: a}], seq_len: 128}\n";

class RunConfigTest : public testing::Test {
 protected:
  LoadedConfig load(const std::string& more, const LoadOptions& options = {},
                    const std::vector<Override>& overrides = {}) {
    return load_config(files_.write("run.yaml", kModel + std::string(kData) + more), overrides, options);
  }
  ConfigFiles files_;
};

TEST_F(RunConfigTest, FillsDerivedValues) {
  const RunConfig config = load("moe: {num_shared_experts: 2, granularity: 4, capacity: {factor: 1.25}}\n").config;
  EXPECT_EQ(config.model.num_key_value_heads, 4);
  EXPECT_EQ(config.model.head_dim, 16);
  EXPECT_EQ(config.model.ffn_hidden_size, 256);
  EXPECT_EQ(config.moe.expert_hidden_size, 256);
  EXPECT_EQ(config.moe.shared_hidden_size, 2 * 256 / 4);
  EXPECT_EQ(config.moe.capacity.eval_factor, 1.25);
  EXPECT_EQ(config.parallel.dp, 1);
}

TEST_F(RunConfigTest, DataParallelismIsWhatIsLeftOfTheWorld) {
  EXPECT_EQ(load("", {.world_size = 4}).config.parallel.dp, 4);
  EXPECT_EQ(load("parallel: {ep: 2}\n", {.world_size = 4}).config.parallel.dp, 4);
  EXPECT_EQ(load("parallel: {ep: 4}\n").config.parallel.dp, 4);  // the least that fits
  EXPECT_EQ(world_size(load("parallel: {dp: 2, ep: 2}\n", {.world_size = 2}).config), 2);
}

TEST_F(RunConfigTest, PathsStartAtTheFileThatNamesThem) {
  files_.write("base/data.yaml", "data: {valid: [{name: v, path: v/tokens}], tokenizer: ../tok.json}\n");
  const auto file = files_.write("run.yaml", std::string("include: [base/data.yaml]\n") + kModel + kData);
  const std::vector<Override> overrides = {{Override::Kind::kSet, "data.train[1]={name: b, path: here}"}};
  const RunConfig config = load_config(file, overrides).config;
  EXPECT_EQ(config.data.train[0].path, files_.directory() / "a");
  EXPECT_EQ(config.data.train[1].path, std::filesystem::current_path() / "here");
  EXPECT_EQ(config.data.valid[0].path, files_.directory() / "base/v/tokens");
  EXPECT_EQ(*config.data.tokenizer, files_.directory() / "tok.json");
}

TEST_F(RunConfigTest, TheResolvedConfigurationReadsBackAsItself) {
  const RunConfig config =
      load(
          "moe: {num_experts: [8, 16], layers: [1, 1], granularity: 2, num_shared_experts: 1, shared_gate: true,\n"
          "  balance: {losses: [{coef: 0.013, level: sequence, convention: deepseek}, {type: z, coef: 1e-3}],\n"
          "    bias: {update_rate: 1e-3, center: true}}, capacity: {factor: 1.3, policy: score}}\n"
          "parallel: {ep: 2, reduction: canonical}\n"
          "optim: {lr: 3.3e-4, warmup: 0.7%, decay: 12, schedule: wsd, betas: [0.9, 0.98]}\n"
          "train: {max_time: 1h30m, steps: 2k}\n")
          .config;
  const std::string written = to_yaml(config);
  const RunConfig back = load_config(files_.write("resolved.yaml", written)).config;
  EXPECT_EQ(to_yaml(back), written);
  EXPECT_EQ(back.optim.lr, 3.3e-4);
  EXPECT_EQ(back.optim.warmup.share, config.optim.warmup.share);
  EXPECT_EQ(back.train.max_time->seconds, 5400);
  EXPECT_EQ(std::get<1>(back.moe.num_experts), (std::vector<int64_t>{8, 16}));
  EXPECT_EQ(back.moe.balance.losses[0].level, moe::Level::kSequence);
  EXPECT_EQ(std::get<1>(back.moe.layers).size(), 2u);
}

TEST_F(RunConfigTest, WhatCountsOnlyNeedsNoDataAndOnlyWarnsOfUnbuiltKeys) {
  const auto file =
      files_.write("info.yaml", std::string(kModel) + "moe: {router: {replay: ids}}\nparallel: {tp: 2}\n");
  EXPECT_THAT(config_error([&] { load_config(file); }), HasSubstr("not built yet"));
  const auto loaded = load_config(file, {}, {.purpose = Purpose::kInfo});
  EXPECT_THAT(loaded.warnings,
              testing::Contains(HasSubstr("info.yaml:2:24: moe.router.replay: cannot be trained yet")));
  EXPECT_EQ(loaded.config.moe.router.replay, "ids");
}

TEST_F(RunConfigTest, WarnsOfWhatHasNoEffect) {
  EXPECT_THAT(load("").warnings, testing::IsEmpty());
  EXPECT_THAT(load("moe: {router: {norm_topk_prob: true, score_before_topk: false}}\n").warnings,
              testing::ElementsAre(HasSubstr("moe.router.norm_topk_prob: has no effect")));
  EXPECT_THAT(load("moe: {top_k: 1, router: {norm_topk_prob: true}}\n").warnings,
              testing::ElementsAre(HasSubstr("the router learns from the auxiliary losses only")));
  EXPECT_THAT(load("moe: {top_k: 1, router: {score_before_topk: false}}\n").warnings,
              testing::ElementsAre(HasSubstr("the router learns from the auxiliary losses only")));
  EXPECT_THAT(load("moe: {top_k: 1, granularity: 2, router: {norm_topk_prob: true}}\n").warnings, testing::IsEmpty());
  const auto two_levels = [](int k, int groups, const std::string& more) {
    return fmt::format(
        "moe: {{top_k: {}, router: {{type: hierarchical, hierarchical: {{groups: 4, group_k: {}}}{}}}}}\n", k, groups,
        more);
  };
  const std::string normalised = ", norm_topk_prob: true";
  for (const auto& [k, groups] : {std::pair(2, 1), std::pair(4, 4)}) {
    EXPECT_THAT(load(two_levels(k, groups, normalised)).warnings,
                testing::ElementsAre(HasSubstr("a level that picks one")));
    EXPECT_THAT(load(two_levels(k, groups, "")).warnings, testing::IsEmpty());
  }
  EXPECT_THAT(load(two_levels(4, 2, normalised)).warnings, testing::IsEmpty());
  EXPECT_THAT(load("moe: {capacity: {renormalize: true}}\n").warnings,
              testing::ElementsAre(HasSubstr("nothing is dropped")));
  EXPECT_THAT(load("moe: {layers: {first_k_dense: 2}}\n").warnings,
              testing::ElementsAre(HasSubstr("no layer is a mixture")));
  EXPECT_THAT(load("moe: {balance: {losses: [{type: z, level: global}]}}\n").warnings,
              testing::ElementsAre(HasSubstr("have an effect on switch losses only")));
  for (const std::string yaml :
       {"moe: {router: {score: sigmoid, score_before_topk: false}}", "moe: {capacity: {policy: score}}",
        "moe: {capacity: {min: 8}}", "moe: {balance: {bias: {rule: proportional}}}",
        "moe: {balance: {bias: {center: true}}}", "optim: {schedule: constant, decay: 10}"})
    EXPECT_THAT(load(yaml + "\n").warnings, testing::ElementsAre(HasSubstr("has no effect"))) << yaml;
  for (const std::string yaml :
       {"moe: {router: {type: expert_choice}}", "moe: {router: {type: sinkhorn}}",
        "moe: {capacity: {factor: 1, policy: score}}", "moe: {dispatch: {compression: {type: lsh}}}"})
    EXPECT_THAT(load(yaml + "\n").warnings, testing::ElementsAre(HasSubstr("class C3"))) << yaml;
  for (const std::string yaml :
       {"moe: {router: {score: sigmoid}}", "moe: {capacity: {factor: 1, policy: position, min: 8}}",
        "moe: {capacity: {eval_factor: 1, min: 8}}",
        "moe: {balance: {bias: {update_rate: 1e-3, rule: proportional, center: true}}}",
        "optim: {schedule: constant, lr: 1e-6}"})
    EXPECT_THAT(load(yaml + "\n").warnings, testing::IsEmpty()) << yaml;
}

TEST_F(RunConfigTest, FilesAreLookedForOnlyWhenAsked) {
  EXPECT_NO_THROW(load(""));
  EXPECT_THAT(config_error([&] { load("", {.check_files = true}); }),
              HasSubstr("run.yaml:2:32: data.train[0].path: no "));
  files_.write("a.bin", "");
  EXPECT_THAT(config_error([&] { load("", {.check_files = true}); }), HasSubstr("a.idx; make it with"));
  files_.write("a.idx", "");
  EXPECT_NO_THROW(load("", {.check_files = true}));
}

TEST_F(RunConfigTest, ConfigurationsMadeInCodeObeyTheSameRules) {
  RunConfig config = load("").config;
  config.parallel.dp.reset();
  EXPECT_THAT(resolve(config, 2), testing::IsEmpty());
  EXPECT_EQ(config.parallel.dp, 2);
  config.parallel.ep = 3;
  config.optim.lr = -1;
  const std::string message = config_error([&] { resolve(config, 2); });
  EXPECT_THAT(message, HasSubstr("optim.lr: must be greater than 0"));
  EXPECT_THAT(message, HasSubstr("ep 3 x etp 1 does not divide the 2 ranks"));
}

TEST_F(RunConfigTest, AProblemOfReadingHidesOnlyTheRulesAboutThatKey) {
  const std::string message = config_error([&] { load("moe: {num_experts: many, top_k: 99}\noptim: {min_lr: 1}\n"); });
  EXPECT_THAT(message, HasSubstr("invalid configuration: 2 problems"));
  EXPECT_THAT(message, HasSubstr("run.yaml:3:20: moe.num_experts: expected a whole number"));
  EXPECT_THAT(message, HasSubstr("run.yaml:4:17: optim.min_lr: min_lr 1 is greater than lr 0.0003"));
}

TEST(RunConfigFiles, EveryConfigurationOfTheRepositoryReads) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(CONCLAVE_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    if (entry.path().parent_path().filename() == "sweeps") continue;  // read by Points
    ++count;
    EXPECT_NO_THROW(load_config(entry.path(), {}, {.purpose = Purpose::kInfo})) << entry.path();
    EXPECT_TRUE(config::read_source(entry.path(), "")->text.starts_with("# "))
        << entry.path() << " needs an opening comment";
  }
  EXPECT_GE(count, 10u);
}

}  // namespace
}  // namespace conclave::train
