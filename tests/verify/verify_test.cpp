// SPDX-License-Identifier: Apache-2.0
// `conclave verify`: every layout of four models keeps its promise, and mistakes that are planted do not pass.
#include "verify/verify.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "comm/thread_ranks.h"
#include "config/fields.h"
#include "verify/batches.h"
#include "verify/costs.h"
#include "verify/models.h"
#include "verify/report.h"

namespace conclave::test {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::Not;
using verify::Fault;
using verify::Layout;
using verify::Quantity;
using verify::VerifyOptions;

struct Outcome {
  train::RunConfig config;
  verify::LayoutPlan plan;
  std::vector<verify::Row> rows;
  int64_t others = 0;  // layouts with another batch
};

Outcome verify_on_threads(const train::RunConfig& model, const VerifyOptions& options,
                          const std::string& obstacle = "") {
  Outcome outcome;
  outcome.config = verify::with_divisible_batch(model, options.ranks);
  outcome.plan = verify::plan_layouts(outcome.config, options.ranks, obstacle);
  verify::verify(outcome.config, outcome.plan, options, comm::run_thread_ranks,
                 [&](const verify::Row& row) { outcome.rows.push_back(row); });
  for (const auto& other : verify::other_batches(outcome.config, outcome.plan, options.ranks, obstacle)) {
    outcome.others += std::ssize(other.plan.layouts);
    verify::verify(other.config, other.plan, options, comm::run_thread_ranks,
                   [&](const verify::Row& row) { outcome.rows.push_back(row); });
  }
  return outcome;
}

std::string table(const std::vector<verify::Row>& rows) {
  std::string text = "\n";
  for (const auto& row : rows) text += verify::row_text(row);
  return text;
}

struct ModelCase {
  std::string name;
  train::RunConfig (*config)();
};

class VerifyRanks : public ::testing::TestWithParam<ModelCase> {};

TEST_P(VerifyRanks, EveryLayoutOfUpToFourRanksKeepsItsPromise) {
  const auto outcome = verify_on_threads(GetParam().config(), {.steps = 2});
  EXPECT_TRUE(verify::all_hold(outcome.rows)) << table(outcome.rows);
  ASSERT_EQ(std::ssize(outcome.rows), std::ssize(outcome.plan.layouts) + outcome.others);
  EXPECT_THAT(outcome.rows, Contains(Field(&verify::Row::layout, Field(&Layout::dp, 3))));
  // Of 1, 2 and 4 ranks nothing is left out but what 8 experts and 32 numbers cannot have.
  for (const auto& one : outcome.plan.skipped)
    EXPECT_THAT(one.what, AnyOf(HasSubstr("tp 3"), HasSubstr("ep 3"), HasSubstr("dp 3"))) << one.why;
  const bool moe = GetParam().name != "Dense";
  const auto dispatch = moe ? moe::DispatchType::kAllToAll : moe::DispatchType::kAuto;
  const int64_t ep = moe ? 2 : 1;
  for (const Layout& wanted :
       {Layout{.dp = 4, .ep = ep, .dispatch = dispatch, .zero = 1},
        Layout{.dp = 2, .ep = ep, .dispatch = dispatch, .tp = 2},
        Layout{.dp = 2, .ep = 1, .dispatch = dispatch, .zero = 1, .tp = 2, .etp = ep, .sequence_parallel = false},
        Layout{.dp = 1, .ep = 1, .dispatch = dispatch, .zero = 1, .tp = 4, .etp = moe ? 4 : 1}})
    EXPECT_THAT(outcome.plan.layouts, Contains(wanted)) << name_of(wanted);
  for (const auto& row : outcome.rows) {
    const bool other_sums = row.layout.dispatch == moe::DispatchType::kAllGather ||
                            row.layout.dispatch == moe::DispatchType::kHierarchical ||
                            row.layout.executor == parallel::ExecutorType::kChunked;
    bool bitwise = row.layout.reduction == parallel::Reduction::kCanonical && row.layout.tp == 1 && !other_sums;
    const bool rounded = row.layout.payload != moe::DispatchPayload::kSame;
    EXPECT_EQ(row.promise, rounded   ? verify::Promise::kMeasured
                           : bitwise ? verify::Promise::kBitwise
                                     : verify::Promise::kClose);
    bitwise &= !rounded;
    EXPECT_EQ(row.find(Quantity::kWeights) != nullptr, bitwise);
    EXPECT_EQ(row.find(Quantity::kCounts) == nullptr, GetParam().name == "Dense");
    EXPECT_EQ(row.find(Quantity::kBias) != nullptr, GetParam().name.starts_with("S")) << "global counts or a bias";
    for (const auto& measure : row.largest) EXPECT_TRUE(!bitwise || measure.same_bits) << describe(measure);
  }
}

INSTANTIATE_TEST_SUITE_P(All, VerifyRanks,
                         ::testing::Values(ModelCase{"Dense", dense_model},
                                           ModelCase{"SoftmaxWithAux", softmax_aux_model},
                                           ModelCase{"SigmoidWithBias", sigmoid_bias_model},
                                           ModelCase{"Capacity", capacity_model}),
                         [](const auto& info) { return info.param.name; });

struct FaultCase {
  Fault fault;
  Quantity first;
  // Layouts where the mistake has no effect: with one rank on the axis it is about.
  bool (*harmless)(const Layout&);
};

bool one_rank(const Layout& layout) { return layout.dp == 1; }
bool one_expert_rank(const Layout& layout) { return layout.ep == 1; }
bool alone(const Layout& layout) { return layout.ranks() == 1; }
bool nowhere(const Layout&) { return false; }

class VerifyFaultsRanks : public ::testing::TestWithParam<FaultCase> {};

TEST_P(VerifyFaultsRanks, ArePointedAtWhereTheyBegin) {
  const auto outcome = verify_on_threads(sigmoid_bias_model(), {.ranks = 2, .steps = 1, .fault = GetParam().fault});
  ASSERT_EQ(outcome.rows.size(), outcome.plan.layouts.size());
  ASSERT_GE(outcome.rows.size(), 12u);
  for (const auto& row : outcome.rows) {
    SCOPED_TRACE(table({row}));
    if (row.promise == verify::Promise::kMeasured) continue;  // broken by nothing but what is not finite
    EXPECT_EQ(!row.first.has_value(), GetParam().harmless(row.layout));
    if (!row.first) continue;
    // A lost token may change a decision of the next layer, which comes before the loss.
    if (GetParam().fault == Fault::kLostToken) {
      EXPECT_LE(row.first->quantity, GetParam().first);
    } else {
      EXPECT_EQ(row.first->quantity, GetParam().first);
    }
    EXPECT_GT(row.first->difference, 1e-5);
  }
  EXPECT_FALSE(verify::all_hold(outcome.rows));
}

INSTANTIATE_TEST_SUITE_P(All, VerifyFaultsRanks,
                         ::testing::Values(FaultCase{Fault::kGradScale, Quantity::kGradient, one_rank},
                                           FaultCase{Fault::kExpertScale, Quantity::kGradient, one_expert_rank},
                                           FaultCase{Fault::kLostToken, Quantity::kLoss, nowhere},
                                           FaultCase{Fault::kBiasLocal, Quantity::kBias, one_rank},
                                           FaultCase{Fault::kNormTwice, Quantity::kNorm, one_rank},
                                           FaultCase{Fault::kWrongIds, Quantity::kFlips, nowhere},
                                           FaultCase{Fault::kDriftedCopy, Quantity::kWeights, alone}),
                         [](const auto& info) {
                           std::string name = verify::fault_names()[info.index];
                           name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
                           return name;
                         });

TEST(VerifyFaults, NeedSomethingToDamage) {
  EXPECT_THROW(verify::require_possible(Fault::kGradScale, dense_model(), 1), ConfigError);
  EXPECT_NO_THROW(verify::require_possible(Fault::kGradScale, dense_model(), 2));
  EXPECT_THROW(verify::require_possible(Fault::kExpertScale, dense_model(), 2), ConfigError);
  EXPECT_THROW(verify::require_possible(Fault::kBiasLocal, capacity_model(), 2), ConfigError);
  EXPECT_NO_THROW(verify::require_possible(Fault::kBiasLocal, sigmoid_bias_model(), 2));
  EXPECT_EQ(verify::fault_names().size(), 7u);
  EXPECT_EQ(verify::fault_named("norm-twice"), Fault::kNormTwice);
  EXPECT_THROW(verify::fault_named("norm-thrice"), UsageError);
}

auto skipped(const std::string& what, const std::string& why) {
  return AllOf(Field(&verify::Skipped::what, HasSubstr(what)), Field(&verify::Skipped::why, HasSubstr(why)));
}

TEST(VerifyLayouts, SayWhatIsLeftOutAndWhy) {
  auto config = verify::with_divisible_batch(softmax_aux_model(), 4);
  EXPECT_EQ(config.train.global_batch_size, 16);
  config.moe.num_experts = int64_t{6};
  const auto plan = verify::plan_layouts(config, 4, "");
  EXPECT_THAT(plan.skipped, Contains(skipped("dp 4 ep 4", "6 experts cannot be split over ep=4")));
  EXPECT_THAT(plan.skipped, Contains(skipped("dp 3 ep 1", "16 sequences cannot be split over dp 3")));
  EXPECT_EQ(std::count_if(plan.layouts.begin(), plan.layouts.end(), [](const auto& l) { return l.ep == 4; }), 0);
  EXPECT_EQ(std::count(plan.layouts.begin(), plan.layouts.end(), plan.reference), 0);
}

TEST(VerifyLayouts, ShortMicroBatchesHaveNoCanonical) {
  auto config = verify::with_divisible_batch(softmax_aux_model(), 2);
  config.train.micro_batch_size = 1;
  config.data.seq_len = 12;
  const auto plan = verify::plan_layouts(config, 2, "");
  EXPECT_THAT(plan.skipped, Contains(skipped("dp 2 ep 1 canonical", "at least 16 tokens of a micro-batch")));
  EXPECT_EQ(plan.reference.reduction, parallel::Reduction::kFast);
  for (const auto& layout : plan.layouts) EXPECT_EQ(layout.reduction, parallel::Reduction::kFast);
  EXPECT_GE(plan.layouts.size(), 5u);
}

TEST(VerifyLayouts, WithoutCanonicalEverythingIsComparedWithFast) {
  const auto config = verify::with_divisible_batch(softmax_aux_model(), 2);
  const auto plan = verify::plan_layouts(config, 2, "bits of a row move");
  EXPECT_THAT(plan.skipped, Contains(skipped("canonical", "bits of a row move")));
  EXPECT_EQ(plan.reference.reduction, parallel::Reduction::kFast);
  EXPECT_GE(plan.layouts.size(), 5u);
  for (const auto& layout : plan.layouts) EXPECT_NE(verify::promise_of(layout), verify::Promise::kBitwise);
}

TEST(VerifyLayouts, PartialSumsPromiseLess) {
  Layout layout{.dp = 2, .ep = 2, .dispatch = moe::DispatchType::kAllToAll};
  EXPECT_EQ(verify::promise_of(layout), verify::Promise::kBitwise);
  layout.dispatch = moe::DispatchType::kHierarchical;
  EXPECT_EQ(verify::promise_of(layout), verify::Promise::kClose);
  layout = {.dp = 2, .executor = parallel::ExecutorType::kChunked};
  EXPECT_EQ(verify::promise_of(layout), verify::Promise::kClose);
  layout = {.dp = 2, .reduction = parallel::Reduction::kFast};
  EXPECT_EQ(verify::promise_of(layout), verify::Promise::kClose);
}

// Three ranks have a batch of their own; six, too, which eight micro-batches do not divide over.
TEST(VerifyLayouts, OtherNumbersOfRanksGetBatchesOfTheirOwn) {
  const auto config = verify::with_divisible_batch(dense_model(), 6);
  auto plan = verify::plan_layouts(config, 6, "");
  const auto others = verify::other_batches(config, plan, 6, "");
  ASSERT_EQ(others.size(), 3u);
  for (const auto& [other, dp, batch] :
       {std::tuple(others[0], 3, 12), std::tuple(others[1], 5, 20), std::tuple(others[2], 6, 24)}) {
    EXPECT_EQ(other.config.train.global_batch_size, batch);
    EXPECT_GE(other.plan.layouts.size(), 2u);
    for (const auto& layout : other.plan.layouts) {
      EXPECT_EQ(layout.dp, dp);
      EXPECT_EQ(layout.reduction, parallel::Reduction::kFast) << "one rank has no order of 12 to compare bits with";
    }
    EXPECT_THAT(verify::heading_of(other), HasSubstr(fmt::format("train.global_batch_size {}", batch)));
  }
  EXPECT_THAT(plan.skipped, Not(Contains(Field(&verify::Skipped::why, HasSubstr("cannot be split over dp 3")))));
}

// Without replay a flipped decision excuses differences, not numbers that are none.
TEST(VerifyReport, WhatIsNotJudgedIsNoPromiseKept) {
  verify::Row row{.layout = {.dp = 2, .tp = 2}, .promise = verify::Promise::kClose, .judged = false};
  EXPECT_FALSE(verify::all_hold({row}));
  EXPECT_THAT(verify::closing({row}, {}), HasSubstr("no promise could be judged"));
  verify::Row kept{.layout = {.dp = 2}};
  EXPECT_TRUE(verify::all_hold({row, kept}));
  EXPECT_THAT(verify::closing({row, kept}, {}), HasSubstr("all 1 promises hold"));
  row.first = verify::Measure{.difference = verify::kNotFinite, .same_bits = false};
  EXPECT_FALSE(verify::all_hold({row, kept}));
  EXPECT_THAT(verify::row_text(row), HasSubstr("BROKEN"));
}

TEST(VerifyBatches, HavePaddingAndDocumentsAndAreNotRepeated) {
  const auto config = verify::with_divisible_batch(softmax_aux_model(), 4);
  const Batch batch = verify::micro_batch(config, 0, 1);  // sequences 2 and 3
  const auto in = [&](int32_t segment) {
    return std::count(batch.segment_ids.begin(), batch.segment_ids.end(), segment);
  };
  EXPECT_GT(in(-1), 0);
  EXPECT_GT(in(1), 0);
  EXPECT_LT(in(-1), 32);
  EXPECT_EQ(batch.tokens_count(), 64);
  for (int64_t i = 0; i < 64; ++i) EXPECT_TRUE(batch.segment_ids[i] >= 0 || batch.loss_mask[i] == 0);
  EXPECT_EQ(verify::micro_batch(config, 0, 1).tokens, batch.tokens);
  EXPECT_NE(verify::micro_batch(config, 1, 1).tokens, batch.tokens);
  EXPECT_NE(verify::micro_batch(config, 0, 2).tokens, batch.tokens);
  EXPECT_NE(verify::micro_batch(config, 1, 0).global_token_ids, verify::micro_batch(config, 0, 0).global_token_ids);
}

TEST(VerifyReport, JsonHoldsWhatTheTableShows) {
  const VerifyOptions options{.ranks = 2, .steps = 1, .fault = Fault::kExpertScale};
  auto model = softmax_aux_model();
  model.data.seq_len = 12;  // too few tokens on a rank of tp 2 for canonical
  const auto outcome = verify_on_threads(model, options);
  const auto json = verify::to_json(outcome.config, outcome.plan, options, outcome.rows);
  EXPECT_EQ(json["all_hold"], false);
  ASSERT_EQ(json["rows"].size(), outcome.rows.size());
  for (size_t i = 0; i < outcome.rows.size(); ++i) {
    const auto& row = json["rows"][i];
    const bool broken = outcome.rows[i].first.has_value();
    const bool measured = outcome.rows[i].promise == verify::Promise::kMeasured;
    EXPECT_EQ(row["verdict"], broken ? "broken" : measured ? "measured" : "holds");
    EXPECT_EQ(row["ep"], outcome.rows[i].layout.ep);
    EXPECT_EQ(row["first"].is_null(), !broken);
    if (!broken) continue;
    EXPECT_THAT(row["first"]["where"].get<std::string>(), HasSubstr(".moe.experts."));
  }
  EXPECT_THAT(table(outcome.rows), AllOf(HasSubstr("BROKEN"), HasSubstr("first: step 1, gradient (layers.")));
  EXPECT_THAT(verify::closing(outcome.rows, options), HasSubstr("promises are BROKEN, as the planted fault should"));
  EXPECT_THAT(verify::heading(outcome.config, outcome.plan, options, "threads"),
              AllOf(HasSubstr("train.global_batch_size 8 here"), HasSubstr("skipped: dp 1 tp 2")));
}

TEST(VerifyReport, AFaultThatIsNotFoundIsSaidSo) {
  EXPECT_THAT(verify::closing({}, {.fault = Fault::kLostToken}), HasSubstr("NOT found"));
  EXPECT_THAT(verify::closing({}, {}), HasSubstr("all 0 promises hold"));
}

// Rounded rows are measured against no promise; damage that is not finite is no rounding.
TEST(VerifyPayloadRanks, IsMeasuredAndNotJudged) {
  const VerifyOptions options{.ranks = 2, .steps = 1};
  const auto outcome = verify_on_threads(softmax_aux_model(), options);
  int64_t measured = 0;
  for (const auto& row : outcome.rows) {
    if (row.layout.payload == moe::DispatchPayload::kSame) continue;
    ++measured;
    EXPECT_EQ(row.layout.ep, 2);
    EXPECT_FALSE(row.first.has_value());
    EXPECT_GT(row.find(Quantity::kGradient)->difference, 1e-4) << "rows were rounded";
    const auto name = fmt::format(" {} ", config::enum_name(row.layout.payload));
    EXPECT_THAT(verify::row_text(row), AllOf(HasSubstr(name), HasSubstr("none     measured")));
  }
  EXPECT_EQ(measured, 2 * 3 * 3) << "two formats, three exchanges in dp 2 and tp 2 with tokens shared out and not";
  const auto closing = verify::closing(outcome.rows, options);
  EXPECT_THAT(closing, HasSubstr(fmt::format("all {} promises hold", std::ssize(outcome.rows) - measured)));
  EXPECT_THAT(closing, HasSubstr("18 layouts are measured, not judged: nothing is promised of payloads that round\n"));
  const auto json = verify::to_json(outcome.config, outcome.plan, options, outcome.rows);
  for (const auto& row : json["rows"]) EXPECT_EQ(row["payload"] != "same", row["verdict"] == "measured");
}

TEST(VerifyCompare, PromisesDifferInWhatTheyForgive) {
  using verify::Promise;
  const verify::Measure close{.quantity = Quantity::kGradient, .difference = 9e-6, .same_bits = false};
  EXPECT_TRUE(breaks(close, Promise::kBitwise));
  EXPECT_FALSE(breaks(close, Promise::kClose));
  EXPECT_FALSE(breaks({.quantity = Quantity::kLoss, .difference = 0.5, .same_bits = false}, Promise::kMeasured));
  EXPECT_TRUE(breaks({.difference = verify::kNotFinite, .same_bits = false}, Promise::kMeasured));
  EXPECT_TRUE(breaks({.quantity = Quantity::kLoss, .difference = 2e-5, .same_bits = false}, Promise::kClose));
  EXPECT_TRUE(breaks({.difference = verify::kNotFinite, .same_bits = false}, Promise::kClose));
  EXPECT_TRUE(breaks({.quantity = Quantity::kDrops, .difference = 1, .same_bits = false}, Promise::kClose));
  const verify::Measure few{.quantity = Quantity::kFlips, .difference = 2, .of = 100, .same_bits = false},
      many{.quantity = Quantity::kFlips, .difference = 3, .of = 100, .same_bits = false},
      rare{.quantity = Quantity::kFlips, .difference = 5, .of = 1000, .same_bits = false};
  EXPECT_FALSE(breaks(few, Promise::kClose));
  EXPECT_TRUE(breaks(many, Promise::kClose));
  EXPECT_FALSE(breaks(rare, Promise::kClose));
  EXPECT_FALSE(breaks(many, Promise::kMeasured));
  EXPECT_TRUE(breaks({.quantity = Quantity::kFlips, .difference = 1, .same_bits = false}, Promise::kBitwise));
}

TEST(VerifyCosts, WarnOfWhatDoesNotFit) {
  const auto config = verify::with_divisible_batch(softmax_aux_model(), 4);
  const auto plan = verify::plan_layouts(config, 4, "");
  const verify::HostShare host{.memory = {.total = int64_t{1} << 40, .available = int64_t{1} << 30}, .cores = 2};
  const auto costs = verify::costs_of(config, plan, {}, host);
  EXPECT_TRUE(verify::cost_warnings(costs, host).empty());
  auto large = config;
  large.model.hidden_size = 2048;
  large.model.num_layers = 40;
  const auto warnings = verify::cost_warnings(verify::costs_of(large, plan, {}, host), host);
  EXPECT_THAT(warnings, Contains(AllOf(HasSubstr("GiB are free"), HasSubstr("--set model.num_layers=2"))));
  auto small_host = host;
  small_host.memory.total = int64_t{2} << 30;
  EXPECT_THROW(verify::cost_warnings(verify::costs_of(large, plan, {}, host), small_host), ConfigError);
  EXPECT_GT(verify::host_memory().available, 1 << 20);
  EXPECT_GE(verify::host_memory().total, verify::host_memory().available);
}

}  // namespace
}  // namespace conclave::test
