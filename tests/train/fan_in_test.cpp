// SPDX-License-Identifier: Apache-2.0
// `model.init: fan_in` over ranks: numbers that are drawn again are drawn by their place in the whole tensor.
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

TEST(FanInRanks, DrawTheSameWeightsInEveryLayout) {
  const LayoutCase one{.name = "FanIn", .change = [](auto& config) {
                         config.model.init = model::Init::kFanIn;
                         config.model.init_scale = 0.1;
                       }};
  RankRun alone({}, {}, one, parallel::Reduction::kFast);
  const auto expected = alone.all_state();
  for (const Layout layout : {Layout{.dp = 2, .ep = 2}, Layout{.tp = 2}, Layout{.dp = 2, .ep = 2, .tp = 2, .etp = 2}}) {
    run_ranks(layout.ranks(), [&](const comm::Group& world) {
      RankRun run(world, layout, one, parallel::Reduction::kFast);
      const auto state = run.all_state();
      ASSERT_EQ(state.size(), expected.size());
      for (const auto& [name, bytes] : expected) EXPECT_TRUE(state.at(name) == bytes) << name << " tp " << layout.tp;
    });
  }
}

}  // namespace
}  // namespace conclave::test
