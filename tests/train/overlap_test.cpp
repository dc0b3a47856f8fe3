// SPDX-License-Identifier: Apache-2.0
// Gradients that are summed while backward goes on and weights that are gathered during the next forward: the bits of a
// step that waits for both, in every layout, executor and reduction; and whoever reads weights between steps has to
// wait. Ranks are threads here, whose transfers arrive when they are waited for and not before: a missing wait shows.
#include <gmock/gmock.h>

#include "support/ranks.h"
#include "train/layout_runs.h"
#include "train/replica_check.h"

namespace conclave::test {
namespace {

using parallel::ExecutorType;
using parallel::Reduction;

struct OverlapCase {
  std::string name;
  Layout layout;
  LayoutCase training = {.name = "Plain"};
};

// With tensor-parallel ranks, each needs 16 tokens of a micro-batch.
LayoutCase wide(int64_t vocabulary = 32) {
  return {.name = "Wide", .change = [vocabulary](auto& config) {
            config.train.micro_batch_size = 4;
            config.model.vocab_size = vocabulary;
          }};
}

std::vector<OverlapCase> overlap_cases() {
  const LayoutCase tied{.name = "Tied", .change = [](auto& config) {
                          config.model.tie_embeddings = true, config.moe.layers = moe::LayerPattern{1, 1};
                        }};
  const LayoutCase recomputed{.name = "Recomputed",
                              .change = [](auto& config) { config.memory.recompute = model::Recompute::kFull; },
                              .padding = true};
  // Slices of the norm are few: some ranks own nothing of the vocabulary's buckets.
  const LayoutCase large{.name = "Large", .change = [](auto& config) { config.model.vocab_size = 4096; }};
  const LayoutCase alone{.name = "OneMicroBatch", .change = [](auto& config) { config.train.global_batch_size = 8; }};
  return {{"Dp2", {.dp = 2}},
          {"Dp2Ep2Tied", {.dp = 2, .ep = 2}, tied},
          {"Dp4Ep2", {.dp = 4, .ep = 2}, recomputed},
          {"Dp4OneMicroBatch", {.dp = 4, .ep = 2}, alone},
          {"Dp8Large", {.dp = 8, .ep = 1}, large},
          {"Dp2Tp2Ep2UnevenVocabulary", {.dp = 2, .ep = 2, .tp = 2}, wide(37)},
          {"Dp2Tp2Etp2", {.dp = 2, .ep = 1, .tp = 2, .etp = 2}, wide()},
          {"Tp2Ep1", {.dp = 1, .ep = 1, .tp = 2}, wide()}};
}

class OverlapRanks : public ::testing::TestWithParam<OverlapCase> {};

// All steps, in both reductions.
LayoutOutcome trained(const comm::Group& world, const Layout& layout, const LayoutCase& training, Reduction reduction) {
  RankRun run(world, layout, training, reduction);
  LayoutOutcome outcome;
  for (int64_t i = 0; i < run.config().train.steps; ++i) {
    const auto report = run.step(i);
    EXPECT_FALSE(report.skipped) << *report.skipped;
    outcome.losses.push_back(report.loss);
    outcome.norms.push_back(report.grad_norm);
  }
  outcome.gradient = run.all_gradients();
  outcome.state = run.all_state();
  return outcome;
}

TEST_P(OverlapRanks, ChangesNoBit) {
  const auto& [name, of_case, training] = GetParam();
  run_ranks(of_case.ranks(), [&](const comm::Group& world) {
    for (const auto reduction : {Reduction::kCanonical, Reduction::kFast})
      for (const auto executor : {ExecutorType::kSequential, ExecutorType::kChunked, ExecutorType::kInterleaved})
        for (const int64_t zero : {0, 1}) {
          SCOPED_TRACE(fmt::format("{} {} zero {}", config::enum_name(reduction), config::enum_name(executor), zero));
          Layout layout = of_case;
          layout.executor = executor;
          layout.zero = zero;
          layout.overlap = false;
          const auto waiting = trained(world, layout, training, reduction);
          layout.overlap = true;
          expect_same(trained(world, layout, training, reduction), waiting);
        }
  });
}

INSTANTIATE_TEST_SUITE_P(All, OverlapRanks, ::testing::ValuesIn(overlap_cases()),
                         [](const auto& info) { return info.param.name; });

// `fast` sums the ranks' gradients in one order, whoever owns them.
TEST(OverlapZeroRanks, FastHasTheSameBitsWithAndWithoutShards) {
  run_ranks(4, [](const comm::Group& world) {
    const LayoutCase plain{.name = "Plain"};
    expect_same(trained(world, {.dp = 4, .ep = 2, .zero = 1}, plain, Reduction::kFast),
                trained(world, {.dp = 4, .ep = 2, .zero = 0}, plain, Reduction::kFast));
  });
}

// The first element of a tensor.
float* weight(nn::Parameters& parameters, const std::string& name) {
  for (const auto& parameter : parameters.all())
    if (parameter.parts[0].name == name) return parameters.flat(parameter.expert).data_ptr<float>() + parameter.offset;
  throw BugError("there is no tensor {}", name);
}

TEST(OverlapGuardRanks, AGradientThatIsNotFiniteIsNamedAndSkippedAsWithoutOverlap) {
  // The router of layer 1 overflows: its bucket is complete, and its sum under way, long before the step ends.
  const LayoutCase broken{.name = "Broken"};
  for (const auto executor : {ExecutorType::kSequential, ExecutorType::kInterleaved})
    for (const auto reduction : {Reduction::kCanonical, Reduction::kFast})
      for (const bool tensor_parallel : {false, true})
        run_ranks(4, [&](const comm::Group& world) {
          std::vector<std::string> said;
          for (const bool overlap : {false, true}) {
            Layout layout{.dp = 4, .ep = 2, .zero = 1, .overlap = overlap, .executor = executor};
            if (tensor_parallel) layout.dp = 2, layout.tp = 2;
            RankRun run(world, layout, tensor_parallel ? wide() : broken, reduction);
            run.step(0);
            const auto before = run.all_state();
            float* const norm = weight(run.parameters(), "layers.1.ffn_norm.weight");
            const float kept = *norm;
            *norm = 1e38f;
            const auto report = run.step(1);
            ASSERT_TRUE(report.skipped);
            said.push_back(*report.skipped);
            *norm = kept;
            EXPECT_EQ(run.all_state(), before);
            EXPECT_FALSE(run.step(2).skipped);
          }
          EXPECT_EQ(said[0], said[1]);
        });
}

TEST(OverlapWaitRanks, WeightsAreUnderWayAfterAStepUntilSomebodyWaits) {
  run_ranks(2, [](const comm::Group& world) {
    for (const bool overlap : {false, true}) {
      RankRun run(world, {.dp = 2, .zero = 1, .overlap = overlap}, {.name = "Plain"}, Reduction::kFast);
      for (int64_t i = 0; i < 2; ++i) run.step(i);
      const auto compare = [&] { train::check_replicas(run.model()); };
      if (overlap) {
        EXPECT_THROW(compare(), NumericError) << "nothing was under way";
      }
      run.training().wait_for_weights();
      EXPECT_NO_THROW(compare());
      run.step(2);
      run.state();
      EXPECT_NO_THROW(compare()) << "a checkpoint has waited";
    }
  });
}

// Of events on the track of exchanges with this phase: how many there are, and how many have work of a stage beside
// them.
std::pair<int, int> beside(const Timeline& timeline, std::string_view phase) {
  int all = 0, hidden = 0;
  for (const auto& exchange : timeline.events()) {
    if (!exchange.exchange || exchange.phase != phase) continue;
    ++all;
    hidden += std::any_of(timeline.events().begin(), timeline.events().end(), [&](const auto& work) {
      return !work.exchange && work.micro_batch >= 0 && exchange.begin <= work.begin && work.end <= exchange.end;
    });
  }
  return {all, hidden};
}

TEST(OverlapTimelineRanks, ShowsSumsBesideBackwardAndWeightsBesideForward) {
  // Deep enough that some sums are there before the last ones start.
  const LayoutCase deep{.name = "Deep", .change = [](auto& config) { config.model.num_layers = 4; }};
  constexpr int kBuckets = 10;  // embedding, four layers, their experts, final norm and head
  run_ranks(2, [&](const comm::Group& world) {
    for (const auto executor : {ExecutorType::kSequential, ExecutorType::kChunked, ExecutorType::kInterleaved})
      for (const bool overlap : {false, true})
        for (const int64_t zero : {0, 1}) {
          RankRun run(world, {.dp = 2, .zero = zero, .overlap = overlap, .executor = executor}, deep, Reduction::kFast);
          run.step(0);
          run.training().wait_for_weights();
          auto& timeline = run.training().timeline();
          timeline.start();
          for (int64_t i = 1; i < 3; ++i) run.step(i);
          // All but the embedding's have some backward left.
          const auto [sums, sums_hidden] = beside(timeline, "gradients out");
          EXPECT_EQ(sums, 2 * kBuckets);
          EXPECT_EQ(sums_hidden, overlap ? 2 * (kBuckets - 1) : 0);
          const auto [back, back_hidden] = beside(timeline, "gradients back");
          EXPECT_EQ(back, zero == 0 ? 2 * kBuckets : 0);
          EXPECT_EQ(back_hidden > 0, overlap && zero == 0);
          // Those of the first step; of the second, those not waited for yet are not there.
          const auto [weights, weights_hidden] = beside(timeline, "weights");
          EXPECT_EQ(weights, zero == 0 ? 0 : overlap ? kBuckets : 2 * kBuckets);
          EXPECT_EQ(weights_hidden, zero == 1 && overlap ? kBuckets - 1 : 0);
        }
  });
}

}  // namespace
}  // namespace conclave::test
