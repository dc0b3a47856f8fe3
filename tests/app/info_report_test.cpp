// SPDX-License-Identifier: Apache-2.0
#include "app/info_report.h"

#include <gmock/gmock.h>

#include "core/error.h"

namespace conclave::app {
namespace {

using testing::HasSubstr;

train::RunConfig mixture() {
  train::RunConfig config;
  config.model.vocab_size = 32000;
  config.model.hidden_size = 4096;
  config.model.num_layers = 32;
  config.model.num_attention_heads = 32;
  config.model.num_key_value_heads = 8;
  config.model.ffn_hidden_size = 14336;
  return config;
}

TEST(InfoReport, PrintsCountsOfBothCountersAndTheResolvedShape) {
  const auto text = info_report(mixture(), 1);
  EXPECT_THAT(text, HasSubstr("46,702,792,704"));
  EXPECT_THAT(text, HasSubstr("46,701,477,888"));  // without norms and router
  EXPECT_THAT(text, HasSubstr("0-31: 8 experts of width 14336, 2 for each token"));
  EXPECT_THAT(text, HasSubstr("sequences of 1024"));
}

TEST(InfoReport, PrintsGranularityResolvedAndEveryKindOfLayer) {
  auto config = mixture();
  config.moe.granularity = 4;
  config.moe.num_shared_experts = 1;
  config.moe.layers = moe::LayerPattern{1, 1};
  const auto text = info_report(config, 1);
  EXPECT_THAT(text, HasSubstr("0: dense, width 14336"));
  EXPECT_THAT(text, HasSubstr("1-31: 32 experts of width 3584, 8 for each token, shared width 3584"));
}

TEST(InfoReport, PrintsTheScalesOfMup) {
  auto config = mixture();
  EXPECT_EQ(info_report(config, 1).find("Initialisation"), std::string::npos);
  config.model.init = model::Init::kMup;
  config.model.mup = {.base_width = 1024, .base_head_dim = 64, .base_experts = 4};
  const auto text = info_report(config, 1);
  EXPECT_THAT(text, HasSubstr("matrices with 4096 inputs, gates    0.015625       lr x 0.25"));
  EXPECT_THAT(text, HasSubstr("head                                       0          lr x 1"));
  EXPECT_THAT(text, HasSubstr("down projections of width 14336"));
  EXPECT_THAT(text, HasSubstr("lr x 0.0714286"));
  EXPECT_THAT(text, HasSubstr("logits x 0.25, attention scores x 0.0625, weights of experts x 1.3"));
}

TEST(InfoReport, SaysThatATeacherIsNotCounted) {
  auto config = mixture();
  EXPECT_EQ(info_report(config, 1).find("teacher"), std::string::npos);
  config.train.distill = {.teacher = "runs/a"};
  EXPECT_THAT(info_report(config, 1), HasSubstr("The teacher of train.distill is in none of these figures"));
}

TEST(InfoReport, ColumnsAreAligned) {
  const auto text = info_report(mixture(), 1);
  const auto column = [&](const char* row) {
    const auto start = text.find(row);
    return text.find('\n', start) - start;
  };
  EXPECT_EQ(column("Parameters "), column("  active for a token "));
  EXPECT_EQ(column("  active for a token "), column("  embedding "));
}

TEST(InfoReport, SpreadsExpertsOverRanksAndNamesTheGradientSets) {
  auto config = mixture();
  config.parallel.ep = 4;
  config.parallel.reduction = parallel::Reduction::kCanonical;
  const auto text = info_report(config, 4);
  EXPECT_THAT(text, HasSubstr("4 ranks, dp 4, tp 1, ep 4, etp 1, 8 micro-batches of 1024 tokens a step, reduction "
                              "canonical, zero 1, fp32"));
  EXPECT_THAT(text, HasSubstr("gradients (2 sets, x 4 for local experts)"));
}

TEST(InfoReport, RefusesRanksThatTheLayoutDoesNotUse) {
  auto config = mixture();
  config.parallel.dp = 2;
  EXPECT_THROW(info_report(config, 3), ConfigError);
  config.parallel.dp.reset();
  EXPECT_THROW(info_report(config, 3), ConfigError);  // 8 sequences over 3 ranks
  config.parallel.tp = 2;
  EXPECT_THROW(info_report(config, 1), ConfigError);
  EXPECT_THROW(info_report(config, 0), ConfigError);
}

}  // namespace
}  // namespace conclave::app
