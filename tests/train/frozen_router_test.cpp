// SPDX-License-Identifier: Apache-2.0
// moe.router.frozen: weights that are drawn and never move.
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

constexpr auto kCanonical = parallel::Reduction::kCanonical;

LayoutCase frozen(const std::string& type = "topk") {
  return {.name = "Frozen", .change = [type](auto& config) {
            config.moe.router.type = type;
            config.moe.router.frozen = true;
            if (type != "topk") config.moe.balance = {};
          }};
}

bool of_router(const std::string& key) { return key.find("moe.router.weight") != std::string::npos; }

TEST(FrozenRouter, StaysAsItWasDrawnWhileAllElseMoves) {
  RankRun run({}, {}, frozen(), kCanonical);
  const auto before = run.all_state();
  for (int64_t step = 0; step < 2; ++step) run.step(step);
  int64_t routers = 0;
  for (const auto& [key, bytes] : run.all_state()) {
    if (of_router(key)) {
      ++routers;
      EXPECT_TRUE(bytes == before.at(key)) << key;
    } else if (key.ends_with(" param")) {
      EXPECT_FALSE(bytes == before.at(key)) << key;
    }
  }
  EXPECT_EQ(routers, 2 * 3) << "weights and moments of two layers";
}

TEST(FrozenRouter, WithAStateKeepsWhatCarriesIt) {
  auto still = frozen();
  still.change = [change = still.change](auto& config) {
    change(config);
    config.moe.router.recurrent = {.hidden_size = 8};
  };
  RankRun run({}, {}, still, kCanonical);
  const auto before = run.all_state();
  run.step(0);
  int64_t parts = 0;
  for (const auto& [key, bytes] : run.all_state()) {
    if (key.find("moe.router.") == std::string::npos || !key.ends_with(" param")) continue;
    ++parts;
    EXPECT_TRUE(bytes == before.at(key)) << key;
  }
  EXPECT_EQ(parts, 2 * 2 + 4) << "router and projection of two layers, the unit";
}

TEST(FrozenRouter, IsNoPartOfTheGradientNorm) {
  RankRun run({}, {}, frozen(), kCanonical);
  const auto report = run.step(0);
  double trained = 0, routers = 0;
  for (const auto& [key, bytes] : run.all_gradients())
    (of_router(key) ? routers : trained) += std::pow(norm_of(numbers(bytes)), 2);
  EXPECT_GT(routers, 1e-4 * trained) << "its gradient is there";
  EXPECT_NEAR(report.grad_norm * report.targets / std::sqrt(trained), 1.0, 1e-6);
}

TEST(FrozenRouter, ThatWouldStartFromZeroIsDrawn) {
  RankRun run({}, {}, frozen("noisy_topk"), kCanonical);
  for (const auto& parameter : run.parameters().all()) {
    if (parameter.expert) continue;
    const Tensor value = nn::view_of(run.parameters().flat(false), parameter);
    EXPECT_TRUE(parameter.kind != nn::ParameterKind::kRouter || value.std().item<float>() > 0.1f);
  }
}

}  // namespace
}  // namespace conclave::test
