// SPDX-License-Identifier: Apache-2.0
// Sharded optimizer state (parallel.zero: 1): who holds what, skipped updates, and checkpoints that move between
// layouts. That training has the same bits with and without is part of LayoutRanks.
#include <gmock/gmock.h>

#include "support/ranks.h"
#include "train/resumed_runs.h"

namespace conclave::test {
namespace {

constexpr auto kCanonical = parallel::Reduction::kCanonical;

// Two slices of the norm in either vocabulary matrix: with more ranks than slices some own nothing of them.
LayoutCase large_vocabulary() {
  return {.name = "LargeVocabulary", .change = [](auto& config) { config.model.vocab_size = 4096; }};
}

TEST(ZeroRanks, EveryElementHasOneOwnerAndEveryBucketIsSharedAsEvenlyAsItsSlicesAllow) {
  std::vector<int64_t> counts(8), expert_counts(8), embedding(8);
  run_ranks(8, [&](const comm::Group& world) {
    RankRun run(world, {8, 1, 1}, large_vocabulary(), kCanonical);
    for (const bool expert : {false, true}) {
      auto& optimizer = run.training().optimizer(expert);
      const int64_t owned = run.training().owned(expert).count();
      EXPECT_EQ(optimizer.first_moment().numel(), owned);
      EXPECT_EQ(optimizer.second_moment().numel(), owned);
      (expert ? expert_counts : counts)[world.rank()] = owned;
    }
    embedding[world.rank()] = run.training().owned(false).own(0).count;
  });
  RankRun alone({}, {}, large_vocabulary(), kCanonical);
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), alone.training().owned(false).count());
  EXPECT_EQ(std::accumulate(expert_counts.begin(), expert_counts.end(), int64_t{0}),
            alone.training().owned(true).count());
  EXPECT_THAT(embedding, ::testing::UnorderedElementsAre(65536, 65536, 0, 0, 0, 0, 0, 0));
  // Experts are many small tensors: nearly even, also within a layer.
  EXPECT_LT(*std::max_element(expert_counts.begin(), expert_counts.end()), alone.training().owned(true).count() / 6);
}

TEST(ZeroRanks, RanksThatOwnNothingKeepTheSameBits) {
  const Alone alone(large_vocabulary());
  for (const Layout layout : {Layout{4, 4}, Layout{8, 1}})
    run_ranks(static_cast<int>(layout.dp),
              [&](const comm::Group& world) { expect_layout_promise(world, layout, large_vocabulary(), alone); });
}

TEST(ZeroRanks, ACheckpointGoesOnInEveryOtherLayoutBitForBit) {
  const LayoutCase large = large_vocabulary();
  RankRun alone({}, {}, large, kCanonical);
  for (int64_t i = 0; i < 3; ++i) alone.step(i);
  const auto expected = alone.all_state();
  const std::vector<Layout> layouts{{1, 1, 0}, {2, 1, 1}, {2, 2, 1}, {4, 2, 1}, {4, 2, 0}, {8, 2, 1}};
  std::optional<checkpoint::Digest> digest;
  for (const Layout& from : layouts) {
    const data::TemporaryDirectory scratch;
    run_ranks(static_cast<int>(from.dp), [&](const comm::Group& world) {
      RankRun run(world, from, large, kCanonical);
      for (int64_t i = 0; i < 2; ++i) run.step(i);
      const auto saved = RankStore(world, scratch / "run").save(run, 2);
      if (world.rank() != 0) return;
      EXPECT_EQ(saved, digest.value_or(saved)) << "dp " << from.dp << " zero " << from.zero;
      digest = saved;
    });
    for (const Layout& to : layouts) {
      run_ranks(static_cast<int>(to.dp), [&](const comm::Group& world) {
        RankRun run(world, to, large, kCanonical);
        RankStore(world, scratch / "run").load(run, 2);
        run.step(2);
        const auto state = run.all_state();
        EXPECT_TRUE(state == expected) << "dp " << from.dp << " zero " << from.zero << " to dp " << to.dp << " ep "
                                       << to.ep << " zero " << to.zero;
      });
    }
  }
}

}  // namespace
}  // namespace conclave::test
