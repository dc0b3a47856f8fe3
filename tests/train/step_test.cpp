// SPDX-License-Identifier: Apache-2.0
// The step's guard: a gradient that is not finite leaves no trace but a report that says which tensor and which rank;
// and which kinds of parameters decay.
#include <gmock/gmock.h>

#include "kernels/tensor_checks.h"
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

using ::testing::HasSubstr;

const LayoutCase kPlain{.name = "Plain"};
constexpr parallel::Reduction kBoth[] = {parallel::Reduction::kCanonical, parallel::Reduction::kFast};

TEST(StepGuardRanks, NamesTheTensorAndTheRankOfTheFirstGradientThatIsNotFinite) {
  for (const auto reduction : kBoth) {
    for (const Layout layout : {Layout{2, 1, 0}, Layout{2, 2, 0}, Layout{2, 1, 1}, Layout{2, 2, 1}}) {
      for (const int guilty : {0, 1}) {
        run_ranks(2, [&](const comm::Group& world) {
          // Each rank has four micro-batches a step: the poisoned one is in the middle of the second step.
          RankRun r(world, layout, kPlain, reduction, fmt::format("gradient:6:{}=nan", guilty));
          EXPECT_FALSE(r.step(0).skipped);
          const auto before = r.all_state();
          const auto report = r.step(1);
          ASSERT_TRUE(report.skipped.has_value());
          EXPECT_THAT(*report.skipped,
                      HasSubstr(fmt::format("gradient of embedding.weight is not finite (rank {})", guilty)));
          EXPECT_EQ(r.all_state(), before) << "weights, moments, biases and counts stay as they were";
          EXPECT_EQ(r.training().updates(), 1);
          EXPECT_FALSE(r.step(2).skipped);
          EXPECT_EQ(r.training().updates(), 2);
          EXPECT_NE(r.all_state(), before);
        });
      }
    }
  }
}

// The mesh numbers ranks 0 2 1 3 there; mpirun and the logs do not.
TEST(StepGuardRanks, NamesTheRankOfTheJobWhateverTheMeshCallsIt) {
  const LayoutCase reordered{.name = "Reordered", .change = [](auto& config) {
                               config.train.micro_batch_size = 4;
                               config.parallel.rank_order = {"tp", "pp", "cp", "dp"};
                             }};
  for (const int guilty : {1, 2}) {
    run_ranks(4, [&](const comm::Group& world) {
      RankRun r(world, {.dp = 2, .tp = 2}, reordered, kBoth[1], fmt::format("gradient:1:{}=nan", guilty));
      const auto report = r.step(0);
      ASSERT_TRUE(report.skipped.has_value());
      EXPECT_THAT(*report.skipped, HasSubstr(fmt::format("is not finite (rank {})", guilty)));
    });
  }
}

TEST(StepGuard, SkipsABatchWithoutTargets) {
  for (const auto reduction : kBoth) {
    RankRun r(comm::Group(), {}, kPlain, reduction);
    const auto before = r.all_state();
    const auto report = r.step(0, true);
    EXPECT_EQ(report.skipped, "no target of the batch counts");
    EXPECT_EQ(r.all_state(), before);
  }
}

// Kinds of parameters that a step with a learning rate of 1 and no gradient to speak of shrinks.
TEST(StepDecay, SparesTheKindsThatAreListedAndNoOthers) {
  for (const std::vector<std::string>& listed :
       {std::vector<std::string>{"norm", "bias", "router_bias"}, {"embedding", "router"}, {}}) {
    LayoutCase decaying{.name = "Decay", .change = [&](auto& config) {
                          config.optim.no_decay = listed;
                          config.model.qkv_bias = true;
                          config.optim.schedule = optim::ScheduleType::kConstant;
                          config.optim.lr = 1e-3, config.optim.weight_decay = 0.5;
                        }};
    LayoutCase plain = decaying;
    plain.change = [&](auto& config) {
      decaying.change(config);
      config.optim.weight_decay = 0.0;
    };
    RankRun with(comm::Group(), {}, decaying, kBoth[1]), without(comm::Group(), {}, plain, kBoth[1]);
    // Biases start at zero, where decay does not show.
    for (RankRun* r : {&with, &without})
      for (const bool expert : {false, true}) r->parameters().flat(expert).add_(0.25f);
    for (RankRun* r : {&with, &without}) EXPECT_FALSE(r->step(0).skipped);
    std::map<std::string, int> kinds;
    for (const auto& parameter : with.parameters().all()) {
      const std::string kind = nn::kind_name(parameter.kind);
      const bool spared = std::find(listed.begin(), listed.end(), kind) != listed.end();
      const auto value = [&](RankRun& r) { return nn::view_of(r.parameters().flat(parameter.expert), parameter); };
      EXPECT_EQ(value(with).equal(value(without)), spared) << parameter.parts[0].name;
      ++kinds[kind];
    }
    EXPECT_EQ(kinds.size(), 5u) << "weight, norm, bias, embedding, router";
  }
}

}  // namespace
}  // namespace conclave::test
