// SPDX-License-Identifier: Apache-2.0
#include "model/accounting.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "support/read_yaml.h"

namespace conclave::model {
namespace {

ModelShape read_preset(const std::string& name) {
  const auto sections = conclave::testing::read_yaml("configs/presets/" + name + ".yaml");
  return model_shape(sections.model, sections.moe);
}

struct Published {
  const char* preset;
  int64_t total;
  int64_t active;
};

void PrintTo(const Published& published, std::ostream* out) { *out << published.preset; }

class AccountingPublishedExactly : public ::testing::TestWithParam<Published> {};

TEST_P(AccountingPublishedExactly, ExactCounterGivesTheParametersOfTheReleasedModel) {
  const auto count = count_parameters(read_preset(GetParam().preset), Counter::kExact);
  EXPECT_EQ(count.total(), GetParam().total);
  EXPECT_EQ(count.active(), GetParam().active);
}

// Totals of OLMoE and Mixtral-8x7B are those of the released weights; the rest was added up independently from
// config.json.
INSTANTIATE_TEST_SUITE_P(Presets, AccountingPublishedExactly,
                         ::testing::Values(Published{"olmoe-1b-7b", 6'919'161'856, 1'282'017'280},
                                           Published{"mixtral-8x7b", 46'702'792'704, 12'879'925'248},
                                           Published{"mixtral-8x22b", 140'630'071'296, 39'161'468'928},
                                           Published{"dbrx", 131'596'523'520, 36'469'708'800},
                                           Published{"arctic", 478'584'608'768, 17'318'647'808},
                                           Published{"deepseek-moe-16b", 16'375'728'128, 2'828'650'496},
                                           Published{"qwen1.5-moe-a2.7b", 14'315'784'192, 2'689'173'504},
                                           Published{"small-mixtral", 20'064'512, 7'383'296},
                                           Published{"small-fine", 28'379'392, 6'359'296}));

class AccountingPublishedRounded : public ::testing::TestWithParam<Published> {};

// The publishers round to whole billions and leave the embedding lookup, norms and router out of what is active.
TEST_P(AccountingPublishedRounded, TotalAndActiveAreWithinHalfAPercent) {
  const auto shape = read_preset(GetParam().preset);
  const double total = static_cast<double>(count_parameters(shape, Counter::kExact).total());
  const double active = static_cast<double>(count_parameters(shape, Counter::kPaper).active_without_lookup());
  EXPECT_NEAR(total / GetParam().total, 1.0, 0.005);
  EXPECT_NEAR(active / GetParam().active, 1.0, 0.005);
}

INSTANTIATE_TEST_SUITE_P(Presets, AccountingPublishedRounded,
                         ::testing::Values(Published{"dbrx", 132'000'000'000, 36'000'000'000},
                                           Published{"arctic", 480'000'000'000, 17'000'000'000},
                                           Published{"mixtral-8x22b", 141'000'000'000, 39'000'000'000}));

struct ReMoe {
  const char* preset;
  double parameters;  // millions
  double flops;       // GFLOPs to train on one sequence
};

void PrintTo(const ReMoe& row, std::ostream* out) { *out << row.preset; }

class AccountingReMoe : public ::testing::TestWithParam<ReMoe> {};

TEST_P(AccountingReMoe, PaperCounterGivesThePublishedParametersAndFlops) {
  const auto shape = read_preset(GetParam().preset);
  const double millions = static_cast<double>(count_parameters(shape, Counter::kPaper).active()) / 1e6;
  EXPECT_EQ(std::round(millions * 100) / 100, GetParam().parameters);
  const double giga = static_cast<double>(count_flops(shape, Counter::kPaper, 1024).training() * 1024) / 1e9;
  EXPECT_EQ(std::floor(giga + 0.5), GetParam().flops);
}

INSTANTIATE_TEST_SUITE_P(Presets, AccountingReMoe,
                         ::testing::Values(ReMoe{"remoe-182m", 182.45, 995}, ReMoe{"remoe-469m", 469.76, 2873},
                                           ReMoe{"remoe-978m", 978.32, 5991}));

// A small base to vary.
ModelConfig small_model() {
  ModelConfig model;
  model.vocab_size = 1000;
  model.hidden_size = 64;
  model.num_layers = 4;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 2;
  model.ffn_hidden_size = 96;
  return model;
}

// "Slicing and Dicing" (arXiv 2605.11689) counts both vocabulary matrices as active: 2Vd + L(4d² + 12d²), and as total
// with ρ times the experts 12d²L more for each of them (methods.md 4(a); the millions are those of its table).
struct SlicingRow {
  const char* name;
  int64_t width, layers, heads;
  double active;
  std::vector<std::pair<int64_t, double>> totals;  // ρ = E / k
};

void PrintTo(const SlicingRow& row, std::ostream* out) { *out << row.name; }

class AccountingSlicing : public ::testing::TestWithParam<SlicingRow> {};

TEST_P(AccountingSlicing, PaperCounterGivesTheTableWithinAFifthOfAPercent) {
  const auto& row = GetParam();
  ModelConfig model;
  model.vocab_size = 100'278;
  model.hidden_size = row.width;
  model.num_layers = row.layers;
  model.num_attention_heads = row.heads;
  for (const int64_t granularity : {1, 4}) {
    moe::MoeConfig moe;
    moe.top_k = 1;
    moe.granularity = granularity;
    const auto active = count_parameters(model_shape(model, moe), Counter::kPaper).active();
    EXPECT_NEAR(static_cast<double>(active) / 1e6 / row.active, 1.0, 0.002);
    for (const auto& [ratio, millions] : row.totals) {
      moe.num_experts = ratio;
      const auto total = count_parameters(model_shape(model, moe), Counter::kPaper).total();
      EXPECT_NEAR(static_cast<double>(total) / 1e6 / millions, 1.0, 0.005) << ratio << ": three digits are printed";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scales, AccountingSlicing,
                         ::testing::Values(SlicingRow{"10M", 48, 3, 3, 9.73, {}},
                                           SlicingRow{"20M", 96, 4, 4, 19.85, {}},
                                           SlicingRow{"50M", 240, 5, 6, 52.74, {}},
                                           SlicingRow{"80M", 336, 8, 7, 81.84, {{128, 1460}}},
                                           SlicingRow{"100M", 384, 9, 8, 98.3, {{64, 1100}, {128, 2120}}},
                                           SlicingRow{"110M", 432, 9, 9, 113.5, {{64, 1380}, {128, 2670}}},
                                           SlicingRow{"200M", 640, 10, 10, 193.9, {{64, 3290}, {128, 6440}}},
                                           SlicingRow{"300M", 832, 12, 13, 299.8, {{64, 6580}, {128, 12960}}},
                                           SlicingRow{"500M", 1120, 14, 14, 505.6, {{64, 13800}}}));

struct TwinCase {
  const char* name;
  void (*edit)(moe::MoeConfig&);
};

void PrintTo(const TwinCase& twin, std::ostream* out) { *out << twin.name; }

class AccountingDenseTwin : public ::testing::TestWithParam<TwinCase> {};

TEST_P(AccountingDenseTwin, HasTheFlopsOfTheMixtureWithoutItsRouter) {
  moe::MoeConfig moe;
  GetParam().edit(moe);
  const auto sparse = model_shape(small_model(), moe);
  moe.enabled = false;
  const auto dense = model_shape(small_model(), moe);
  for (const auto& layer : dense.layers) EXPECT_FALSE(layer.moe);
  for (const Counter counter : {Counter::kExact, Counter::kPaper}) {
    const auto mixture = count_flops(sparse, counter, 128), twin = count_flops(dense, counter, 128);
    const auto without_router = static_cast<double>(mixture.forward() - mixture.router);
    EXPECT_NEAR(static_cast<double>(twin.forward()) / without_router, 1.0, 1e-3);
    EXPECT_NEAR(static_cast<double>(twin.training()) / (3 * without_router), 1.0, 1e-3);
    EXPECT_EQ(twin.experts, 0);
    EXPECT_GT(mixture.experts, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AccountingDenseTwin,
    ::testing::Values(
        TwinCase{"default", [](moe::MoeConfig&) {}},
        TwinCase{"granular", [](moe::MoeConfig& m) { m.granularity = 4, m.top_k = 1; }},
        TwinCase{"shared", [](moe::MoeConfig& m) { m.num_shared_experts = 2, m.expert_hidden_size = 24; }},
        TwinCase{"granular shared gate",
                 [](moe::MoeConfig& m) { m.num_shared_experts = 3, m.granularity = 2, m.shared_gate = true; }},
        TwinCase{"shared width", [](moe::MoeConfig& m) { m.shared_hidden_size = 40; }},
        TwinCase{"residual", [](moe::MoeConfig& m) { m.branch = moe::Branch::kResidual, m.expert_hidden_size = 32; }},
        TwinCase{"parallel", [](moe::MoeConfig& m) { m.branch = moe::Branch::kParallel; }},
        TwinCase{"pattern",
                 [](moe::MoeConfig& m) {
                   m.layers = moe::LayerPattern{1, 2};
                 }},
        TwinCase{"list", [](moe::MoeConfig& m) {
                   m.layers = std::vector<int64_t>{0, 1, 1, 0};
                   m.num_experts = std::vector<int64_t>{4, 16};
                 }}));

TEST(AccountingShape, GranularityMultipliesExpertsAndChoicesAndDividesTheWidth) {
  moe::MoeConfig moe;
  moe.granularity = 4;
  moe.num_shared_experts = 2;
  const auto layer = model_shape(small_model(), moe).layers[0];
  EXPECT_EQ(layer.num_experts, 32);
  EXPECT_EQ(layer.top_k, 8);
  EXPECT_EQ(layer.expert_width, 24);
  EXPECT_EQ(layer.shared_width, 48);
  EXPECT_EQ(layer.ffn_width, 0);
  moe.enabled = false;
  EXPECT_EQ(model_shape(small_model(), moe).layers[0], (LayerShape{.ffn_width = 8 * 24 + 48}));
}

TEST(AccountingShape, GranularityKeepsTotalAndActiveExpertParameters) {
  moe::MoeConfig moe;
  const auto coarse = count_parameters(model_shape(small_model(), moe), Counter::kPaper);
  moe.granularity = 8;
  const auto fine = count_parameters(model_shape(small_model(), moe), Counter::kPaper);
  EXPECT_EQ(coarse.total(), fine.total());
  EXPECT_EQ(coarse.active(), fine.active());
}

TEST(AccountingShape, PatternsSayWhichLayersAreMixtures) {
  const auto pattern = [](auto layers) {
    moe::MoeConfig moe;
    moe.layers = layers;
    std::vector<bool> result;
    for (const auto& layer : model_shape(small_model(), moe).layers) result.push_back(layer.moe);
    return result;
  };
  EXPECT_EQ(pattern(moe::LayerPattern{1, 1}), (std::vector<bool>{false, true, true, true}));
  EXPECT_EQ(pattern(moe::LayerPattern{1, 2}), (std::vector<bool>{false, true, false, true}));
  EXPECT_EQ(pattern(moe::LayerPattern{0, 3}), (std::vector<bool>{true, false, false, true}));
  EXPECT_EQ(pattern(moe::LayerPattern{9, 1}), std::vector<bool>(4, false));
  EXPECT_EQ(pattern(std::vector<int64_t>{0, 1, 1, 0}), (std::vector<bool>{false, true, true, false}));
}

TEST(AccountingShape, DefaultsFollowTheModel) {
  auto model = small_model();
  model.num_key_value_heads.reset();
  model.ffn_hidden_size.reset();
  const auto shape = model_shape(model, {});
  EXPECT_EQ(shape.kv_heads, 4);
  EXPECT_EQ(shape.head_dim, 16);
  EXPECT_EQ(shape.layers[0].expert_width, 256);
}

TEST(AccountingShape, NumbersThatDoNotFitAreConfigurationErrors) {
  const auto reject = [](auto edit) {
    ModelConfig model = small_model();
    moe::MoeConfig moe;
    edit(model, moe);
    EXPECT_THROW(model_shape(model, moe), ConfigError);
  };
  reject([](auto&, auto& moe) { moe.granularity = 7; });
  reject([](auto&, auto& moe) { moe.granularity = 0; });
  reject([](auto&, auto& moe) { moe.top_k = 9; });
  reject([](auto&, auto& moe) { moe.shared_gate = true; });
  reject([](auto&, auto& moe) { moe.layers = std::vector<int64_t>{1, 1}; });
  reject([](auto&, auto& moe) { moe.num_experts = std::vector<int64_t>{8, 8}; });
  reject([](auto&, auto& moe) { moe.layers = moe::LayerPattern{0, 0}; });
  reject([](auto& model, auto&) { model.num_attention_heads = 3; });
}

// Each feature adds to the exact counter what it holds, written out by hand for hidden 64, 4 heads of 16, 2 for keys.
TEST(AccountingParameters, FeaturesAddTheirOwnParameters) {
  const auto total = [](const ModelConfig& model, const moe::MoeConfig& moe, Counter counter = Counter::kExact) {
    return count_parameters(model_shape(model, moe), counter).total();
  };
  const auto base = small_model();
  const moe::MoeConfig plain;
  auto model = base;
  model.qk_norm = QkNorm::kHead;
  EXPECT_EQ(total(model, plain) - total(base, plain), 4 * (16 + 16));
  model.qk_norm = QkNorm::kFull;
  EXPECT_EQ(total(model, plain) - total(base, plain), 4 * (64 + 32));
  EXPECT_EQ(total(model, plain, Counter::kPaper), total(base, plain, Counter::kPaper));
  model = base;
  model.qkv_bias = true;
  EXPECT_EQ(total(model, plain) - total(base, plain), 4 * (64 + 32 + 32));
  model = base;
  model.tie_embeddings = true;
  EXPECT_EQ(total(base, plain) - total(model, plain), 1000 * 64);
  moe::MoeConfig gated;
  gated.shared_hidden_size = 8;
  const auto without_gate = total(base, gated);
  EXPECT_EQ(without_gate - total(base, plain), 4 * 3 * 64 * 8);
  gated.shared_gate = true;
  EXPECT_EQ(total(base, gated) - without_gate, 4 * 64);
}

TEST(AccountingParameters, TiedEmbeddingIsAlsoTheHeadAndStaysActive) {
  auto model = small_model();
  auto count = count_parameters(model_shape(model, {}), Counter::kExact);
  EXPECT_EQ(count.active() - count.active_without_lookup(), 1000 * 64);
  model.tie_embeddings = true;
  count = count_parameters(model_shape(model, {}), Counter::kExact);
  EXPECT_EQ(count.head, 0);
  EXPECT_EQ(count.active(), count.active_without_lookup());
}

TEST(AccountingFlops, ExactHalvesTheAttentionSquareAndCountsTheRouter) {
  const auto shape = model_shape(small_model(), {});
  const auto exact = count_flops(shape, Counter::kExact, 128), paper = count_flops(shape, Counter::kPaper, 128);
  EXPECT_EQ(exact.attention, 4 * 2 * 128 * 64);
  EXPECT_EQ(paper.attention, 2 * exact.attention);
  EXPECT_EQ(exact.router, 4 * 2 * 64 * 8);
  EXPECT_EQ(paper.router, 0);
  EXPECT_EQ(exact.experts, 4 * 2 * 6 * 64 * 96);
  EXPECT_EQ(exact.projections, 4 * 2 * (64 * (64 + 2 * 32) + 64 * 64));
  EXPECT_EQ(exact.head, 2 * 64 * 1000);
}

TEST(AccountingFlops, MergedExpertsCostOneAndAShareOfMergingThemAll) {
  moe::MoeConfig moe;
  moe.top_k = 1;
  moe.router.type = "lory";
  moe.router.lory = {.segment = 16};
  const auto shape = model_shape(small_model(), moe);
  const int64_t width = shape.layers[0].expert_width, expert = 3 * 64 * width;
  const auto flops = count_flops(shape, Counter::kExact, 128);
  EXPECT_EQ(flops.experts, 4 * (2 * expert + 2 * 8 * expert / 16));
  EXPECT_EQ(flops.router, 0);
  const auto layer = count_parameters(shape, Counter::kExact).layers[0];
  EXPECT_EQ(layer.experts, 8 * expert);
  EXPECT_EQ(layer.active_experts, expert);
  EXPECT_EQ(layer.router, 8 * 64);
}

TEST(AccountingMemory, ExpertsAreSpreadOverExpertRanksAndTheRestIsNot) {
  const auto shape = model_shape(small_model(), {});
  const auto count = count_parameters(shape, Counter::kExact);
  const auto one = rank_bytes(shape, {.dp = 4, .ep = 1, .micro_batches = 8});
  const auto four = rank_bytes(shape, {.dp = 4, .ep = 4, .micro_batches = 8});
  EXPECT_EQ(one.parameters, 4 * count.total());
  EXPECT_EQ(four.parameters, 4 * (count.total() - count.experts()) + count.experts());
  EXPECT_EQ(one.moments, 8 * count.total());
  EXPECT_EQ(one.gradients, one.parameters);
  EXPECT_EQ(four.gradients, four.parameters);
  EXPECT_EQ(one.master, 0);
}

TEST(AccountingMemory, CanonicalReductionKeepsALogarithmOfGradientSets) {
  using enum parallel::Reduction;
  const auto sets = [](int64_t dp, int64_t micro) {
    return gradient_buffers({.dp = dp, .micro_batches = micro, .reduction = kCanonical});
  };
  EXPECT_EQ(sets(1, 1), 1);
  EXPECT_EQ(sets(1, 8), 4);
  EXPECT_EQ(sets(4, 8), 2);
  EXPECT_EQ(sets(8, 8), 1);
  EXPECT_EQ(gradient_buffers({.dp = 1, .micro_batches = 8, .reduction = kFast}), 1);
  // Two that run against each other fit into it; of three or more, one more is held than the tree asks for.
  const auto in_flight = [](int64_t count, int64_t micro) {
    return gradient_buffers({.dp = 1, .micro_batches = micro, .reduction = kCanonical, .in_flight = count});
  };
  EXPECT_EQ(in_flight(2, 8), 4);
  EXPECT_EQ(in_flight(3, 8), 5);
  EXPECT_EQ(in_flight(3, 2), 2);
  EXPECT_EQ(in_flight(3, 4), 3);
  EXPECT_EQ(in_flight(8, 8), 8);
  EXPECT_THROW(sets(1, 6), ConfigError);
  EXPECT_THROW(gradient_buffers({.dp = 3, .micro_batches = 8, .reduction = kFast}), ConfigError);

  const auto shape = model_shape(small_model(), {});
  const auto count = count_parameters(shape, Counter::kExact);
  const auto bytes = rank_bytes(shape, {.dp = 4, .ep = 2, .micro_batches = 8, .reduction = kCanonical});
  // Two sets; local experts (half of them) hold such sets for each of the two ranks that send them tokens.
  EXPECT_EQ(bytes.gradients, 4 * 2 * (count.total() - count.experts()) + 4 * 2 * 2 * (count.experts() / 2));
}

TEST(AccountingMemory, ShardedMomentsAreDividedByTheRanksThatHoldTheSameParameters) {
  const auto shape = model_shape(small_model(), {});
  const auto count = count_parameters(shape, Counter::kExact);
  const int64_t dense = count.total() - count.experts();
  const auto whole = rank_bytes(shape, {.dp = 4, .ep = 2, .micro_batches = 8});
  const auto sharded = rank_bytes(shape, {.dp = 4, .ep = 2, .micro_batches = 8, .zero = 1});
  // Dense ones over dp = 4; half of the experts are here, and one other rank has the same half.
  EXPECT_EQ(sharded.moments, 8 * ((dense + 3) / 4 + count.experts() / 2 / 2));
  EXPECT_EQ(sharded.total() - sharded.moments, whole.total() - whole.moments);
  EXPECT_EQ(rank_bytes(shape, {.zero = 1}).moments, rank_bytes(shape, {}).moments);
}

TEST(AccountingMemory, LayoutsThatDoNotFitAreConfigurationErrors) {
  const auto shape = model_shape(small_model(), {});
  EXPECT_THROW(rank_bytes(shape, {.dp = 4, .ep = 3, .micro_batches = 4}), ConfigError);
  EXPECT_THROW(rank_bytes(shape, {.dp = 16, .ep = 16, .micro_batches = 16}), ConfigError);
}

TEST(AccountingMemory, ActivationsGrowWithTokensAndLayers) {
  const auto shape = model_shape(small_model(), {});
  auto half = shape;
  half.layers.resize(2);
  const auto bytes = [](const ModelShape& s, int64_t tokens) {
    return rank_bytes(s, {.micro_batch_tokens = tokens}).activations;
  };
  EXPECT_EQ(bytes(shape, 256), 2 * bytes(shape, 128));
  EXPECT_EQ(bytes(shape, 128) - bytes(half, 128), bytes(half, 128) - 4 * 128 * 2 * 64);
  // At least the gate and up rows of two experts, 96 wide.
  EXPECT_GT(bytes(shape, 128), 4 * 128 * 4 * (2 * 2 * 96));
}

}  // namespace
}  // namespace conclave::model
