// SPDX-License-Identifier: Apache-2.0
// parallel.gradient_payload: bf16. Each rank's gradients are rounded once on their way to whoever sums them: close to
// those of full precision, and the same bits whoever owns state and whenever sums start.
#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

constexpr auto kFast = parallel::Reduction::kFast;
const LayoutCase kPlain{.name = "Plain"};
const LayoutCase kRounded{.name = "Rounded", .change = [](train::RunConfig& config) {
                            config.parallel.gradient_payload = parallel::GradientPayload::kBf16;
                          }};

// One step's gradient against one that is not rounded, as a share of its norm, over all tensors.
double difference(const LayoutOutcome& got, const LayoutOutcome& expected) {
  double squares = 0, all = 0;
  for (const auto& [name, bytes] : expected.gradient) {
    auto other = numbers(got.gradient.at(name));
    const auto reference = numbers(bytes);
    for (size_t i = 0; i < reference.size(); ++i) other[i] -= reference[i];
    squares += std::pow(norm_of(other), 2), all += std::pow(norm_of(reference), 2);
  }
  return std::sqrt(squares / all);
}

class GradientPayloadRanks : public ::testing::TestWithParam<Layout> {};

TEST_P(GradientPayloadRanks, RoundsGradientsOnceForEachRankAndNothingElse) {
  run_ranks(GetParam().ranks(), [&](const comm::Group& world) {
    const auto plain = run_layout(world, GetParam(), kPlain, kFast),
               got = run_layout(world, GetParam(), kRounded, kFast);
    EXPECT_EQ(got.losses, plain.losses);
    EXPECT_EQ(got.chosen, plain.chosen);
    EXPECT_GT(difference(got, plain), 2e-4);
    // A rounding errs by 2^-8 at most, and ranks' gradients point to some extent against each other.
    EXPECT_LT(difference(got, plain), 8e-3);
    EXPECT_NEAR(got.norms[0] / plain.norms[0], 1.0, 4e-3);
  });
}

TEST_P(GradientPayloadRanks, WhoOwnsStateAndWhenSumsStartChangesNoBit) {
  run_ranks(GetParam().ranks(), [&](const comm::Group& world) {
    const auto first = run_layout(world, GetParam(), kRounded, kFast);
    for (const int64_t zero : {0, 1})
      for (const bool overlap : {false, true}) {
        auto other = GetParam();
        other.zero = zero, other.overlap = overlap;
        const auto again = run_layout(world, other, kRounded, kFast);
        EXPECT_EQ(again.losses, first.losses);
        EXPECT_TRUE(again.gradient == first.gradient) << "zero " << zero << " overlap " << overlap;
      }
  });
}

INSTANTIATE_TEST_SUITE_P(All, GradientPayloadRanks,
                         ::testing::Values(Layout{.dp = 2}, Layout{.dp = 4, .ep = 2}, Layout{.dp = 8, .ep = 4}),
                         [](const auto& info) { return fmt::format("Dp{}Ep{}", info.param.dp, info.param.ep); });

TEST(GradientPayload, OneRankRoundsNothing) {
  expect_same(run_layout({}, {}, kRounded, kFast), run_layout({}, {}, kPlain, kFast));
}

}  // namespace
}  // namespace conclave::test
