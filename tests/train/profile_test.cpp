// SPDX-License-Identifier: Apache-2.0
// train.profile: which steps, and a timeline in which the exchanges of one micro-batch have work of another beside
// them.
#include "train/profile.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "support/ranks.h"
#include "train/layout_runs.h"

namespace conclave::test {
namespace {

TEST(Profile, ReadsRangesOfSteps) {
  const auto range = train::parse_step_range("10..12");
  ASSERT_TRUE(range);
  EXPECT_EQ(range->first, 10);
  EXPECT_EQ(range->last, 12);
  EXPECT_EQ(train::parse_step_range("7")->last, 7);
  for (const char* bad : {"", "..", "10..", "..12", "10.12", "12..10", "0", "-1..2", "a..b", "1..2..3", " 1"})
    EXPECT_FALSE(train::parse_step_range(bad)) << bad;
}

struct Overlap {
  int exchanges = 0, with_other_work = 0, with_own_work = 0;
  size_t most_others = 0;  // micro-batches beside that of an exchange
};

// What lies inside the windows of exchanges: work of other micro-batches, and of their own.
Overlap overlap_of(const Timeline& timeline) {
  Overlap overlap;
  for (const auto& exchange : timeline.events()) {
    if (!exchange.exchange || exchange.micro_batch < 0) continue;  // sums of gradients have none
    ++overlap.exchanges;
    bool own = false;
    std::set<int64_t> others;
    for (const auto& work : timeline.events()) {
      if (work.exchange || work.micro_batch < 0 || work.begin < exchange.begin || work.end > exchange.end) continue;
      if (work.name == exchange.name) continue;
      if (work.micro_batch == exchange.micro_batch) own = true;
      if (work.micro_batch != exchange.micro_batch) others.insert(work.micro_batch);
    }
    overlap.most_others = std::max(overlap.most_others, others.size());
    overlap.with_other_work += !others.empty();
    overlap.with_own_work += own;
  }
  return overlap;
}

TEST(ProfileRanks, TheTimelineShowsWorkBesideEveryExchange) {
  using parallel::ExecutorType;
  run_ranks(2, [](const comm::Group& world) {
    for (const auto executor : {ExecutorType::kSequential, ExecutorType::kChunked, ExecutorType::kInterleaved}) {
      RankRun run(world, {.dp = 2, .ep = 2, .executor = executor}, {.name = "Plain"}, parallel::Reduction::kFast);
      run.step(0);
      EXPECT_TRUE(run.training().timeline().events().empty()) << "off";
      run.training().timeline().start();
      run.step(1);
      const auto overlap = overlap_of(run.training().timeline());
      const int layers = 2, micro_batches = 4;
      if (executor == ExecutorType::kSequential) {
        EXPECT_EQ(overlap.exchanges, 0);
        EXPECT_FALSE(run.training().timeline().events().empty());
      } else if (executor == ExecutorType::kChunked) {
        EXPECT_EQ(overlap.exchanges, micro_batches * layers * 4 * 3);
        EXPECT_EQ(overlap.with_other_work, 0);
        EXPECT_GT(overlap.with_own_work, overlap.exchanges * 3 / 4);
      } else {
        EXPECT_EQ(overlap.exchanges, micro_batches * layers * 4);
        // All but the first and the last of a step.
        EXPECT_GE(overlap.with_other_work, overlap.exchanges - 2);
      }
    }
  });
}

TEST(ProfileRanks, AsManyMicroBatchesAreInFlightAsWasAskedFor) {
  run_ranks(2, [](const comm::Group& world) {
    for (const int64_t in_flight : {2, 3, 4}) {
      const Layout layout{.dp = 2, .ep = 2, .executor = parallel::ExecutorType::kInterleaved, .in_flight = in_flight};
      RankRun run(world, layout, {.name = "Plain"}, parallel::Reduction::kFast);
      run.training().timeline().start();
      run.step(0);
      EXPECT_EQ(overlap_of(run.training().timeline()).most_others, static_cast<size_t>(in_flight - 1));
    }
  });
}

TEST(Profile, TheTraceIsJson) {
  RankRun run({}, {.executor = parallel::ExecutorType::kInterleaved}, {.name = "Plain"}, parallel::Reduction::kFast);
  run.training().timeline().start();
  run.step(0);
  const auto events = nlohmann::json::parse(fmt::format("[{}null]", run.training().timeline().json(0)));
  std::set<std::string> names, phases;
  for (const auto& event : events) {
    if (event.is_null()) continue;
    names.insert(event.at("name"));
    if (event.contains("cat")) phases.insert(event.at("cat"));
  }
  EXPECT_THAT(names,
              ::testing::IsSupersetOf({"embedding", "layers.1.moe.experts", "loss", "update", "gradient reduction"}));
  EXPECT_THAT(phases, ::testing::IsSupersetOf({"forward", "backward", "weight gradients", "step"}));
}

}  // namespace
}  // namespace conclave::test
