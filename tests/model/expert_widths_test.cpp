// SPDX-License-Identifier: Apache-2.0
// Experts of different widths (HMoE, methods.md 1.22): what a model of them is made of and what it costs.
#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "app/info_report.h"
#include "model/accounting.h"
#include "model/product_shapes.h"
#include "support/tiny_models.h"
#include "train/run_config.h"

namespace conclave::model {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<int64_t> kWidths{8, 24, 12, 4};

TransformerConfig config_of(const std::vector<int64_t>& widths) {
  auto config = testing::tiny_config();
  config.moe.expert_hidden_size = widths;
  return config;
}

ModelShape shape_of(const moe::ExpertWidth& width, bool enabled = true) {
  auto config = testing::tiny_config();
  config.moe.expert_hidden_size = width;
  config.moe.enabled = enabled;
  return model_shape(config.model, config.moe);
}

train::RunConfig run_of(const std::vector<int64_t>& widths) {
  train::RunConfig config;
  config.model = testing::tiny_config().model;
  config.moe = config_of(widths).moe;
  config.data.train = {{.name = "made up", .path = "made-up"}};
  config.data.seq_len = 32;
  return config;
}

TEST(ExpertWidths, EveryExpertIsDrawnAndLearnsByItsOwn) {
  auto config = config_of(kWidths);
  config.model.init = Init::kMup;
  config.model.mup.base_width = 32;
  const Transformer model(config);
  std::map<std::string, const nn::Parameter*> found;
  for (const auto& parameter : model.parameters().all())
    for (const auto& part : parameter.parts) found[part.name] = &parameter;
  for (const int layer : {0, 1}) {
    for (int64_t e = 0; e < 4; ++e) {
      const std::string name = "layers." + std::to_string(layer) + ".moe.experts." + std::to_string(e);
      const auto& down = *found.at(name + ".down.weight");
      EXPECT_EQ(found.at(name + ".gate.weight")->parts[0].shape, (std::vector<int64_t>{kWidths[e], 16}));
      EXPECT_EQ(found.at(name + ".up.weight")->parts[1].shape, (std::vector<int64_t>{kWidths[e], 16}));
      EXPECT_EQ(down.parts[0].shape, (std::vector<int64_t>{16, kWidths[e]}));
      // The inputs of the down projection are the expert's own width.
      EXPECT_DOUBLE_EQ(down.init_std, 1 / std::sqrt(static_cast<double>(kWidths[e])));
      EXPECT_DOUBLE_EQ(down.lr_scale, 32.0 / static_cast<double>(kWidths[e]));
    }
  }
}

TEST(ExpertWidths, AListOfEqualOnesIsTheModelOfOneWidth) {
  const Transformer each(config_of({12, 12, 12, 12})), one(testing::tiny_config());
  EXPECT_TRUE(each.parameters().flat(true).equal(one.parameters().flat(true)));
  EXPECT_EQ(shape_of(std::vector<int64_t>{12, 12, 12, 12}).layers, shape_of(12).layers);
}

TEST(ExpertWidths, CountByHand) {
  const auto shape = shape_of(kWidths);
  for (const auto counter : {Counter::kExact, Counter::kPaper}) {
    const auto count = count_parameters(shape, counter);
    EXPECT_EQ(count.layers[0].experts, 3 * 16 * (8 + 24 + 12 + 4));
    // Two experts of a token, of the mean width 12 under even routing.
    EXPECT_EQ(count.layers[0].active_experts, 3 * 16 * 2 * 12);
    EXPECT_EQ(count_flops(shape, counter, 64).experts, 2 * 2 * 3 * 16 * 2 * 12) << "two layers";
    EXPECT_EQ(count_flops(shape, counter, 64).training(), count_flops(shape_of(12), counter, 64).training());
  }
  // 2 · 13/4 · 3 · 16 is no whole number of the mean width 3.
  const auto odd = shape_of(std::vector<int64_t>{1, 2, 4, 6});
  EXPECT_EQ(odd.layers[0].expert_width, 3);
  EXPECT_EQ(count_parameters(odd, Counter::kExact).layers[0].active_experts, 312);
}

TEST(ExpertWidths, TheDenseTwinHasAllChosenOnesOfTheMean) {
  EXPECT_EQ(shape_of(kWidths, false).layers[0], (LayerShape{.ffn_width = 24}));
  EXPECT_EQ(shape_of(std::vector<int64_t>{1, 2, 4, 6}, false).layers[0].ffn_width, 7) << "6.5, rounded";
}

TEST(ExpertWidths, MemoryIsThatOfTheRankWithMostOfIt) {
  const auto bytes = [](const moe::ExpertWidth& width, int64_t ep) {
    return rank_bytes(shape_of(width), {.dp = 4, .ep = ep, .micro_batches = 4, .micro_batch_tokens = 64});
  };
  // Ranks of ep 2 hold 8 + 24 and 12 + 4, as if there were four of 16.
  EXPECT_EQ(bytes(kWidths, 2).parameters, bytes(16, 2).parameters);
  EXPECT_EQ(bytes(kWidths, 2).gradients, bytes(16, 2).gradients);
  EXPECT_EQ(bytes(kWidths, 1).parameters, bytes(12, 1).parameters);
  EXPECT_EQ(bytes(kWidths, 4).parameters, bytes(24, 4).parameters);
  // A token may use the two widest, 24 and 12.
  EXPECT_EQ(bytes(kWidths, 1).activations, bytes(18, 1).activations);
}

TEST(ExpertWidths, EveryWidthIsTriedOutOnce) {
  std::vector<int64_t> depths;
  for (const auto& product : product_shapes(shape_of(std::vector<int64_t>{8, 24, 8, 4})))
    if (product.name == "expert down") depths.push_back(product.shape.depth);
  EXPECT_THAT(depths, ElementsAre(4, 8, 24));
  EXPECT_THAT(share_of(shape_of(kWidths), 4, 2).layers[0].widths, ElementsAre(4, 12, 6, 2)) << "of each etp rank";
}

TEST(ExpertWidths, AreShown) {
  auto config = run_of(kWidths);
  EXPECT_THAT(app::info_report(config, 1), HasSubstr("4 experts of widths 4 to 24 (mean 12), 2 for each token"));
  config.model.init = Init::kMup;
  for (const char* width : {"4 ", "8 ", "12 ", "24 "})
    EXPECT_THAT(app::info_report(config, 1), HasSubstr(std::string("down projections of width ") + width));
}

TEST(ExpertWidths, RanksThatHoldMuchMoreThanOthersAreSaid) {
  const auto warnings = [](const std::vector<int64_t>& widths) {
    auto config = run_of(widths);
    config.parallel.ep = 2;
    return train::resolve(config, 2);
  };
  EXPECT_THAT(warnings(kWidths), Contains(HasSubstr("widths add up to 16 on one rank of ep and to 32 on another")));
  EXPECT_THAT(warnings({8, 24, 12, 20}), Not(Contains(HasSubstr("widths add up"))));
}

TEST(ExpertWidths, TheConfigurationIsReadAsItWasWritten) {
  auto config = run_of(kWidths);
  EXPECT_THAT(train::to_yaml(config), HasSubstr("expert_hidden_size: [8, 24, 12, 4]"));
  train::resolve(config, 1);
  ASSERT_NE(config.moe.expert_hidden_size->each(), nullptr);
  EXPECT_EQ(*config.moe.expert_hidden_size->each(), kWidths);
}

}  // namespace
}  // namespace conclave::model
