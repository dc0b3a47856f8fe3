// SPDX-License-Identifier: Apache-2.0
// How parameters are drawn and how fast they learn.
#include "model/initialisation.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "support/tiny_models.h"

namespace conclave::model {
namespace {

ModelConfig mup(int64_t hidden) {
  ModelConfig config;
  config.hidden_size = hidden;
  config.init = Init::kMup;
  config.init_std = 0.7;
  config.mup = {.base_width = 128, .base_head_dim = 16, .base_experts = 4};
  return config;
}

TEST(Initialisation, OfTheMaximalUpdateParametrisation) {
  const Initialisation init(mup(512), 2);
  EXPECT_DOUBLE_EQ(init.matrix(512).std, 1 / std::sqrt(512.0));
  EXPECT_DOUBLE_EQ(init.matrix(512).lr_scale, 0.25);
  EXPECT_DOUBLE_EQ(init.residual(64).std, 0.125) << "a down projection has its own inputs";
  EXPECT_DOUBLE_EQ(init.residual(64).lr_scale, 2);
  EXPECT_DOUBLE_EQ(init.embedding().std, 0.7);
  EXPECT_DOUBLE_EQ(init.embedding().lr_scale, 1);
  EXPECT_EQ(init.head().std, 0);
  EXPECT_DOUBLE_EQ(init.head().lr_scale, 1);
  EXPECT_DOUBLE_EQ(init.logit_scale(), 0.25);
  EXPECT_DOUBLE_EQ(init.score_scale(64).value(), 4.0 / 64);
  EXPECT_DOUBLE_EQ(init.score_scale(16).value(), 1 / std::sqrt(16.0)) << "as usual at the base";
}

TEST(Initialisation, OfOtherKindsHasNoScalesOfItsOwn) {
  ModelConfig config = mup(512);
  config.init = Init::kScaled;
  const Initialisation init(config, 8);
  for (const Draw draw : {init.matrix(512), init.embedding(), init.head()}) {
    EXPECT_EQ(draw.std, 0.7);
    EXPECT_EQ(draw.lr_scale, 1);
  }
  EXPECT_DOUBLE_EQ(init.residual(64).std, 0.7 / 4);
  EXPECT_EQ(init.logit_scale(), 1);
  EXPECT_FALSE(init.score_scale(64));
  EXPECT_EQ(init.weight_scale({}, {.num_experts = 64}), 1);
}

// All numbers of the tensors whose names end so.
std::vector<double> numbers_of(const Transformer& model, const std::string& suffix) {
  std::vector<double> numbers;
  for (const auto& parameter : model.parameters().all()) {
    int64_t begin = parameter.offset;
    for (const auto& part : parameter.parts) {
      const int64_t count = nn::element_count(part.held());
      if (part.name.ends_with(suffix)) {
        const Tensor values = model.parameters().flat(parameter.expert).narrow(0, begin, count);
        for (const float value : elements<float>(values)) numbers.push_back(value);
      }
      begin += count;
    }
  }
  return numbers;
}

TEST(Initialisation, OfSwitchHasTheVarianceOfItsInputsAfterTheCut) {
  auto config = testing::tiny_config();
  config.model.hidden_size = 256, config.model.head_dim = 64, config.model.num_key_value_heads = 4;
  config.model.vocab_size = 331, config.model.ffn_hidden_size = 192;
  config.model.init = Init::kFanIn;
  config.model.init_scale = 0.1;
  config.moe.num_experts = int64_t{160};
  config.moe.expert_hidden_size = 16;
  config.moe.layers = moe::LayerPattern{1, 1};
  const Transformer model(config);
  const std::map<std::string, double> inputs{{"attention.q.weight", 256}, {"attention.o.weight", 256},
                                             {"ffn.gate.weight", 256},    {"ffn.down.weight", 192},
                                             {"moe.router.weight", 256},  {"head.weight", 256}};
  for (const auto& [suffix, n] : inputs) {
    const auto numbers = numbers_of(model, suffix);
    ASSERT_GT(numbers.size(), 40000u) << suffix;
    double squares = 0, most = 0, inner = 0;
    const double deviation = std::sqrt(0.1 / n);
    for (const double w : numbers) {
      squares += w * w, most = std::max(most, std::abs(w));
      inner += std::abs(w) < deviation / 0.879625661;
    }
    EXPECT_NEAR(squares / static_cast<double>(numbers.size()) * n / 0.1, 1, 0.02) << suffix;
    EXPECT_LE(most, 2 * deviation / 0.879625661 * (1 + 1e-6)) << suffix << " goes beyond the cut";
    EXPECT_GE(most, 1.99 * deviation / 0.879625661) << suffix;
    EXPECT_NEAR(inner / static_cast<double>(numbers.size()), 0.682689 / 0.954500, 0.01) << suffix << " is no normal";
  }
  double squares = 0;
  int64_t all = 0;
  for (int64_t e = 0; e < 160; ++e) {
    for (const double w : numbers_of(model, "experts." + std::to_string(e) + ".down.weight")) squares += w * w, ++all;
  }
  EXPECT_NEAR(squares / static_cast<double>(all) * 16 / 0.1, 1, 0.02) << "a down projection has its own inputs";
  const auto embedding = numbers_of(model, "embedding.weight");
  double most = 0;
  squares = 0;
  for (const double w : embedding) squares += w * w, most = std::max(most, std::abs(w));
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(embedding.size())) / config.model.init_std, 1, 0.02);
  EXPECT_GT(most, 3 * config.model.init_std) << "embeddings are not cut off";
  for (const auto& parameter : model.parameters().all()) EXPECT_EQ(parameter.lr_scale, 1);
}

// What the two largest of so many weights add up to, a softmax of standard normal logits; mean of many draws.
double sum_of_largest(int64_t experts) {
  double sum = 0;
  constexpr int kDraws = 4000;
  for (int draw = 0; draw < kDraws; ++draw) {
    const Random random(3, Purpose::kTest, experts * kDraws + draw);
    std::vector<double> weights;
    for (int64_t e = 0; e < experts; ++e) weights.push_back(std::exp(random.normal(e)));
    const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::partial_sort(weights.begin(), weights.begin() + 2, weights.end(), std::greater<>());
    sum += (weights[0] + weights[1]) / all;
  }
  return sum / kDraws;
}

TEST(Initialisation, WeightsOfATokenDoNotShrinkWithTheNumberOfExperts) {
  const Initialisation init(mup(64), 2);
  const auto scaled = [&](int64_t experts) {
    return init.weight_scale({}, {.num_experts = experts, .top_k = 2}) * sum_of_largest(experts);
  };
  EXPECT_EQ(init.weight_scale({}, {.num_experts = 4, .top_k = 2}), 1);
  for (const int64_t experts : {16, 64, 256}) EXPECT_NEAR(scaled(experts) / scaled(4), 1, 0.1) << experts;
}

TEST(Initialisation, OnlyPartsOfOneSoftmaxNeedAFactor) {
  const Initialisation init(mup(64), 2);
  const LayerShape many{.num_experts = 16, .top_k = 2};
  const auto factor = [&](const std::function<void(moe::MoeConfig&)>& change, const LayerShape& layer) {
    moe::MoeConfig config;
    change(config);
    return init.weight_scale(config, layer);
  };
  const double plain = factor([](auto&) {}, many);
  EXPECT_GT(plain, 1.5);
  EXPECT_DOUBLE_EQ(factor([](auto& c) { c.granularity = 2; }, {.num_experts = 32, .top_k = 4}), plain);
  EXPECT_EQ(factor([](auto& c) { c.router.type = "expert_choice"; }, many), plain);
  EXPECT_EQ(factor([](auto& c) { c.router.norm_topk_prob = true; }, many), 1);
  EXPECT_EQ(factor([](auto& c) { c.router.score_before_topk = false; }, many), 1);
  EXPECT_EQ(factor([](auto& c) { c.router.score = moe::Score::kSigmoid; }, many), 1);
  EXPECT_EQ(factor([](auto& c) { c.router.top_p = 0.7; }, many), 1);
  EXPECT_EQ(factor([](auto& c) { c.router.type = "relu"; }, many), 1);
}

TEST(Initialisation, IsWhatTheModelIsMadeWith) {
  auto config = testing::tiny_config();
  config.model.hidden_size = 64, config.model.head_dim = 16;
  config.model.vocab_size = 509, config.model.ffn_hidden_size = 256;
  config.model.init = Init::kMup;
  config.model.mup.base_width = 32;
  config.moe.expert_hidden_size = 128;
  config.moe.layers = moe::LayerPattern{1, 1};
  const Transformer model(config);
  std::map<std::string, Draw> expected{{"embedding.weight", {config.model.init_std, 1}},
                                       {"head.weight", {0, 1}},
                                       {"layers.0.attention.q.weight", {1 / 8.0, 0.5}},
                                       {"layers.0.attention.o.weight", {1 / 8.0, 0.5}},
                                       {"layers.0.ffn.gate.weight", {1 / 8.0, 0.5}},
                                       {"layers.0.ffn.down.weight", {1 / 16.0, 0.125}},
                                       {"layers.1.moe.router.weight", {1 / 8.0, 0.5}},
                                       {"layers.1.moe.experts.2.gate.weight", {1 / 8.0, 0.5}},
                                       {"layers.1.moe.experts.2.down.weight", {1 / std::sqrt(128.0), 0.25}},
                                       {"final_norm.weight", {0, 1}}};
  size_t found = 0;
  for (const auto& parameter : model.parameters().all()) {
    const auto draw = expected.find(parameter.parts[0].name);
    if (draw == expected.end()) continue;
    ++found;
    EXPECT_DOUBLE_EQ(parameter.lr_scale, draw->second.lr_scale) << draw->first;
    EXPECT_DOUBLE_EQ(parameter.init_std, draw->second.std) << draw->first;
    if (draw->second.std == 0) continue;
    const Tensor value = nn::view_of(model.parameters().flat(parameter.expert), parameter);
    const double tolerance = 4 / std::sqrt(static_cast<double>(value.numel()));
    EXPECT_NEAR(value.to(at::kDouble).pow(2).mean().sqrt().item<double>() / draw->second.std, 1, tolerance)
        << draw->first;
  }
  EXPECT_EQ(found, expected.size());
  EXPECT_DOUBLE_EQ(model.logit_scale(), 0.5);
}

}  // namespace
}  // namespace conclave::model
