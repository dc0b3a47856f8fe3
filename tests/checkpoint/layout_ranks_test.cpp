// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <atomic>
#include <mutex>

#include "checkpoint/agreement.h"
#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

struct World {
  int size;
  Layout layout;
};

// One store per rank in one directory; returns rank 0's digest.
Digest save_in(const World& world, const path& where, int64_t step) {
  Digest digest;
  test::run_ranks(world.size, [&](const comm::Group& group) {
    Failpoints points;
    const auto log = make_silent_log();
    Store store(group, where, quick_options(), points, *log);
    const TestState state(group, world.layout, static_cast<uint64_t>(step));
    const auto saved = store.save(contents_at(step), state.dict());
    if (group.rank() == 0) digest = saved.state;
  });
  return digest;
}

// Whether every rank finds `step` with all its bytes, replicas included.
bool loads_in(const World& world, const path& where, int64_t step) {
  std::atomic<int> good = 0;
  test::run_ranks(world.size, [&](const comm::Group& group) {
    Failpoints points;
    const auto log = make_silent_log();
    Store store(group, where, quick_options(), points, *log);
    TestState state(group, world.layout, 999);
    state.clear();
    const auto manifest = store.resume(request(), state.dict());
    if (manifest && manifest->step == step &&
        state.same_as(TestState(group, world.layout, static_cast<uint64_t>(step))))
      ++good;
  });
  return good == world.size;
}

std::vector<World> worlds() {
  return {{1, {1, false}}, {2, {1, false}}, {2, {2, false}}, {4, {2, false}},
          {4, {4, false}}, {2, {2, true}},  {4, {1, true}}};
}

TEST(CheckpointLayoutRanksTest, EveryLayoutLoadsWhatEveryOtherSaved) {
  std::vector<Digest> digests;
  for (const auto& from : worlds()) {
    const Scratch scratch;
    digests.push_back(save_in(from, scratch.run(), 5));
    EXPECT_EQ(digests.back(), digests.front()) << from.size << " ranks, ep " << from.layout.ep;
    for (const auto& to : worlds())
      EXPECT_TRUE(loads_in(to, scratch.run(), 5))
          << from.size << " ranks, ep " << from.layout.ep << " to " << to.size << ", ep " << to.layout.ep;
  }
}

TEST(CheckpointLayoutRanksTest, EachRankWritesItsOwnExpertsUnderTheirGlobalNumber) {
  const Scratch scratch;
  save_in({4, {4, false}}, scratch.run(), 1);
  const SafetensorsFile file(scratch.step(1) / "rank-00002.safetensors", NameRule::kOurs);
  EXPECT_EQ(file.tensors().size(), 3u);
  EXPECT_TRUE(file.contains("layers.0.moe.experts.2.gate.weight"));
  EXPECT_TRUE(file.contains("adam_m.layers.0.moe.experts.2.gate.weight"));
}

TEST(CheckpointLayoutRanksTest, DamageInOneRanksFileMovesAllRanksBackTogether) {
  const Scratch scratch;
  const World world{4, {4, false}};
  save_in(world, scratch.run(), 1);
  save_in(world, scratch.run(), 2);
  const auto file = scratch.step(2) / "rank-00003.safetensors";
  auto bytes = slurp(file);
  spill(file, slurp(scratch.step(2) / "rank-00002.safetensors"));  // another rank's file
  EXPECT_TRUE(loads_in(world, scratch.run(), 1));
  bytes.back() ^= 1;
  spill(file, bytes);
  EXPECT_TRUE(loads_in(world, scratch.run(), 1));
  EXPECT_TRUE(loads_in({1, {1, false}}, scratch.run(), 1));
}

TEST(CheckpointLayoutRanksTest, AFailureOnOneRankIsTheSameErrorOnAll) {
  for (const char* point :
       {"file-open:2:1=errno", "mid-chunk:2:3=errno", "gather:2:2=errno", "before-manifest:2:0=errno"}) {
    const Scratch scratch;
    std::atomic<int> same = 0, resumed = 0;
    test::run_ranks(4, [&](const comm::Group& group) {
      Failpoints points(point, group.rank());
      const auto log = make_silent_log();
      Store store(group, scratch.run(), quick_options(), points, *log);
      const Layout layout{4, false};
      store.save(contents_at(1), TestState(group, layout, 1).dict());
      try {
        store.save(contents_at(2), TestState(group, layout, 2).dict());
      } catch (const IoError& error) {
        const std::string failed = fmt::format("rank {}: failpoint", point[std::string(point).find('=') - 1]);
        same += std::string(error.what()).find(failed) != std::string::npos;
      }
      group.barrier();
      TestState state(group, layout, 9);
      const auto manifest = store.resume(request(), state.dict());
      resumed += manifest && manifest->step == 1 && state.same_as(TestState(group, layout, 1));
    });
    EXPECT_EQ(same, 4) << point;
    EXPECT_EQ(resumed, 4) << point;
    EXPECT_TRUE(entries(scratch.run() / "checkpoints", ".staging").empty()) << point;
  }
}

TEST(CheckpointLayoutRanksTest, AMissingKeyOnOneRankIsAnErrorOnAllAndNoHang) {
  const Scratch scratch;
  save_in({2, {2, false}}, scratch.run(), 1);
  std::atomic<int> refused = 0;
  test::run_ranks(2, [&](const comm::Group& group) {
    Failpoints points;
    const auto log = make_silent_log();
    Store store(group, scratch.run(), quick_options(), points, *log);
    TestState state(group, {2, false}, 9);
    if (group.rank() == 1) state.dict()[1].name = "layers.0.moe.experts.7.gate.weight";
    try {
      store.resume(request(), state.dict());
    } catch (const ConfigError& error) {
      refused += std::string(error.what()).find("experts.7") != std::string::npos;
    }
  });
  EXPECT_EQ(refused, 2);
}

TEST(CheckpointLayoutRanksTest, StateThatIsHeldTwiceOrNowhereIsNotSaved) {
  for (const bool twice : {true, false}) {
    const Scratch scratch;
    std::atomic<int> refused = 0;
    test::run_ranks(2, [&](const comm::Group& group) {
      Failpoints points;
      const auto log = make_silent_log();
      Store store(group, scratch.run(), quick_options(), points, *log);
      TestState state(group, {2, true}, 1);
      auto& split = state.dict().back();
      if (twice) split.offset = {0, 0};
      if (!twice) split.writes = group.rank() == 0;
      try {
        store.save(contents_at(1), state.dict());
      } catch (const BugError&) {
        ++refused;
      }
    });
    EXPECT_EQ(refused, 2);
  }
}

TEST(CheckpointLayoutRanksTest, RanksThatSaveDifferentStepsAreToldSo) {
  const Scratch scratch;
  std::atomic<int> refused = 0;
  test::run_ranks(2, [&](const comm::Group& group) {
    Failpoints points;
    const auto log = make_silent_log();
    Store store(group, scratch.run(), quick_options(), points, *log);
    const TestState state(group, {}, 1);
    try {
      store.save(contents_at(1 + group.rank()), state.dict());
    } catch (const BugError&) {
      ++refused;
    }
  });
  EXPECT_EQ(refused, 2);
}

TEST(AgreementRanksTest, TheLowestFailingRanksErrorReachesAllWithItsType) {
  std::atomic<int> good = 0;
  test::run_ranks(3, [&](const comm::Group& group) {
    try {
      agree(group, [&] {
        if (group.rank() == 1) throw DataError("broken {}", 1);
        if (group.rank() == 2) throw std::runtime_error("later");
      });
    } catch (const DataError& error) {
      good += std::string(error.what()) == "rank 1: broken 1";
    }
    EXPECT_EQ(from_rank_zero(group, [&] { return fmt::format("from {}", group.rank()); }), "from 0");
  });
  EXPECT_EQ(good, 3);
}

TEST(AgreementRanksTest, EveryExitCodeKeepsItsType) {
  for (const int code : {64, 65, 70, 73, 74, 76, 78, 81, 82}) {
    try {
      throw_error(code, "{}");
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.code()), code);
      EXPECT_STREQ(error.what(), "{}");
    }
  }
}

}  // namespace
}  // namespace conclave::checkpoint
