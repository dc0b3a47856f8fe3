// SPDX-License-Identifier: Apache-2.0
#include "parallel/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "core/error.h"
#include "support/ranks.h"

namespace conclave::parallel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::array kAllAxes = {Axis::kPp, Axis::kDp, Axis::kCp, Axis::kTp, Axis::kEdp, Axis::kEp, Axis::kEtp};

ParallelConfig config_of(int64_t pp, int64_t dp, int64_t cp, int64_t tp, int64_t ep, int64_t etp) {
  ParallelConfig config;
  config.pp = pp;
  config.dp = dp;
  config.cp = cp;
  config.tp = tp;
  config.ep = ep;
  config.etp = etp;
  return config;
}

// All layouts the contract allows for worlds of up to 16 ranks.
std::vector<std::pair<int64_t, ParallelConfig>> all_layouts() {
  std::vector<std::pair<int64_t, ParallelConfig>> layouts;
  for (int64_t world = 1; world <= 16; ++world)
    for (int64_t pp = 1; pp <= world; ++pp)
      for (int64_t cp = 1; pp * cp <= world; ++cp)
        for (int64_t tp = 1; pp * cp * tp <= world; ++tp)
          for (int64_t ep = 1; ep <= world; ++ep)
            for (int64_t etp = 1; etp <= tp; ++etp) {
              if (world % (pp * cp * tp) != 0) continue;
              const ParallelConfig config = config_of(pp, world / (pp * cp * tp), cp, tp, ep, etp);
              if (mesh_problems(config, world).empty()) layouts.push_back({world, config});
            }
  return layouts;
}

TEST(MeshTest, EveryAxisCutsTheWorldIntoGroupsOfItsSize) {
  const auto layouts = all_layouts();
  EXPECT_GT(layouts.size(), 200u);
  for (const auto& [world, config] : layouts) {
    const AxisValues sizes = mesh_sizes(config, world);
    EXPECT_EQ(sizes[Axis::kEdp] * config.ep * config.etp, sizes[Axis::kDp] * config.cp * config.tp);
    for (const Axis axis : kAllAxes) {
      std::map<int64_t, int> memberships;
      for (int64_t rank = 0; rank < world; ++rank) {
        const std::vector<int64_t> members = members_of(axis, rank, sizes);
        ASSERT_EQ(std::ssize(members), sizes[axis]);
        ASSERT_EQ(members[coordinates_of(rank, sizes)[axis]], rank);
        for (const int64_t member : members) {
          ASSERT_EQ(members_of(axis, member, sizes), members);
          ++memberships[member];
        }
      }
      for (int64_t rank = 0; rank < world; ++rank) ASSERT_EQ(memberships[rank], sizes[axis]);
    }
  }
}

TEST(MeshTest, CoordinatesNameEachRankOnceInBothViews) {
  for (const auto& [world, config] : all_layouts()) {
    const AxisValues sizes = mesh_sizes(config, world);
    std::set<std::array<int64_t, 4>> dense, expert;
    for (int64_t rank = 0; rank < world; ++rank) {
      const AxisValues at = coordinates_of(rank, sizes);
      dense.insert({at[Axis::kPp], at[Axis::kDp], at[Axis::kCp], at[Axis::kTp]});
      expert.insert({at[Axis::kPp], at[Axis::kEdp], at[Axis::kEp], at[Axis::kEtp]});
    }
    ASSERT_EQ(std::ssize(dense), world);
    ASSERT_EQ(std::ssize(expert), world);
  }
}

TEST(MeshTest, RankOrderIsTheContracts) {
  // dp 4, tp 2, ep 4, etp 2: the expert view has edp 1.
  const AxisValues sizes = mesh_sizes(config_of(1, 4, 1, 2, 4, 2), 8);
  EXPECT_EQ(sizes[Axis::kEdp], 1);
  EXPECT_THAT(members_of(Axis::kTp, 5, sizes), ElementsAre(4, 5));
  EXPECT_THAT(members_of(Axis::kDp, 5, sizes), ElementsAre(1, 3, 5, 7));
  EXPECT_THAT(members_of(Axis::kEp, 5, sizes), ElementsAre(1, 3, 5, 7));
  // dp 4, ep 2: experts on neighbours, copies two apart.
  const AxisValues small = mesh_sizes(config_of(1, 4, 1, 1, 2, 1), 4);
  EXPECT_THAT(members_of(Axis::kEp, 3, small), ElementsAre(2, 3));
  EXPECT_THAT(members_of(Axis::kEdp, 3, small), ElementsAre(1, 3));
  // pp 2: stages never mix.
  const AxisValues staged = mesh_sizes(config_of(2, 2, 1, 1, 2, 1), 4);
  EXPECT_THAT(members_of(Axis::kPp, 1, staged), ElementsAre(1, 3));
  EXPECT_THAT(members_of(Axis::kEp, 2, staged), ElementsAre(2, 3));
}

TEST(MeshTest, SourcesOfARanksExpertsAreConsecutiveDataRanks) {
  for (const int64_t ep : {1, 2, 3, 6}) {
    const AxisValues sizes = mesh_sizes(config_of(1, 6, 1, 1, ep, 1), 6);
    for (int64_t rank = 0; rank < 6; ++rank) {
      const AxisValues at = coordinates_of(rank, sizes);
      EXPECT_EQ(at[Axis::kDp], at[Axis::kEdp] * ep + at[Axis::kEp]);
    }
  }
}

TEST(MeshTest, DpIsWhatIsLeft) {
  ParallelConfig config;
  config.tp = 2;
  EXPECT_EQ(mesh_sizes(config, 8)[Axis::kDp], 4);
}

TEST(MeshTest, LayoutsThatCannotBeAreRefusedWithTheirKey) {
  const auto first = [](const ParallelConfig& config, int64_t world) {
    const auto problems = mesh_problems(config, world);
    return problems.empty() ? std::string("fits") : problems.front().path + ": " + problems.front().message;
  };
  EXPECT_THAT(first(config_of(1, 4, 1, 1, 1, 1), 2),
              HasSubstr("parallel.dp: pp 1 x dp 4 x cp 1 x tp 1 make 4 ranks, but 2"));
  EXPECT_THAT(first(config_of(1, 4, 1, 1, 3, 1), 4), HasSubstr("parallel.ep: ep 3 x etp 1 = 3 does not divide"));
  EXPECT_THAT(first(config_of(1, 4, 1, 1, 8, 1), 4), HasSubstr("parallel.ep"));
  EXPECT_THAT(first(config_of(1, 2, 1, 2, 1, 4), 4), HasSubstr("parallel.etp: etp 4 does not divide tp 2"));
  EXPECT_THAT(first(config_of(1, 6, 1, 2, 3, 1), 12), HasSubstr("neither divides cp x tp = 2"));
  EXPECT_THAT(first(config_of(1, 2, 1, 1, 0, 1), 2), HasSubstr("parallel.ep: 0 is no number of ranks"));
  ParallelConfig odd;
  odd.tp = 3;
  EXPECT_THAT(first(odd, 4), HasSubstr("does not divide the 4 ranks"));
  ParallelConfig order;
  order.rank_order = {"dp", "pp", "cp", "dp"};
  EXPECT_THAT(first(order, 1), HasSubstr("parallel.rank_order"));
  EXPECT_THROW(mesh_sizes(odd, 4), ConfigError);
}

TEST(MeshTest, AnotherRankOrderMovesRanksAndNothingElse) {
  const AxisValues sizes = mesh_sizes(config_of(1, 4, 1, 2, 1, 1), 8);
  std::set<int64_t> numbers;
  for (int64_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(number_of(rank, sizes, ParallelConfig().rank_order), rank);
    numbers.insert(number_of(rank, sizes, {"pp", "tp", "cp", "dp"}));
  }
  EXPECT_EQ(std::ssize(numbers), 8);
  // tp slowest: ranks 1 and 5 share a micro-batch.
  EXPECT_EQ(number_of(1, sizes, {"tp", "pp", "cp", "dp"}), 2);
  EXPECT_EQ(number_of(5, sizes, {"tp", "pp", "cp", "dp"}), 3);
}

TEST(MeshRanksTest, RankOrderDecidesWhoSharesAMicroBatch) {
  test::run_ranks(4, [](const comm::Group& world) {
    ParallelConfig config = config_of(1, 2, 1, 2, 1, 1);
    const Mesh near(world, config);
    config.rank_order = {"tp", "pp", "cp", "dp"};
    const Mesh far(world, config);
    EXPECT_THAT(near.tp().all_gather_value(world.rank()), ElementsAre(world.rank() / 2 * 2, world.rank() / 2 * 2 + 1));
    EXPECT_THAT(far.tp().all_gather_value(world.rank()), ElementsAre(world.rank() % 2, world.rank() % 2 + 2));
    // Messages name ranks as the job does.
    EXPECT_EQ(far.job_rank(far.world().rank()), world.rank());
    EXPECT_THAT((std::vector{far.job_rank(0), far.job_rank(1), far.job_rank(2), far.job_rank(3)}),
                ElementsAre(0, 2, 1, 3));
    EXPECT_EQ(near.job_rank(2), 2);
  });
}

TEST(MeshRanksTest, GroupsHaveTheMembersOfTheArithmetic) {
  for (const auto& [world, config] : all_layouts()) {
    if (world != 8 && world != 6) continue;
    const AxisValues sizes = mesh_sizes(config, world);
    test::run_ranks(static_cast<int>(world), [&](const comm::Group& group) {
      const Mesh mesh(group, sizes);
      for (const Axis axis : kAllAxes) {
        EXPECT_EQ(mesh.group(axis).size(), mesh.size(axis));
        EXPECT_EQ(mesh.group(axis).all_gather_value(int64_t{group.rank()}), members_of(axis, group.rank(), sizes));
      }
    });
  }
}

TEST(MeshRanksTest, MicroBatchesAreDealtInConsecutiveBlocks) {
  test::run_ranks(4, [](const comm::Group& group) {
    const Mesh mesh(group, mesh_sizes(config_of(1, 4, 1, 1, 2, 1), 4));
    EXPECT_EQ(mesh.micro_batches(12).first, group.rank() * 3);
    EXPECT_EQ(mesh.micro_batches(12).count, 3);
    EXPECT_THROW(mesh.micro_batches(6), BugError);
  });
}

// A transport that mixes up its members must not go unnoticed.
class SwappedSplit : public comm::Transport {
 public:
  explicit SwappedSplit(comm::Group real) : real_(std::move(real)) {}
  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  std::string name() const override { return "swapped"; }
  std::shared_ptr<comm::Transport> split(int color, int key) override {
    return std::make_shared<SwappedSplit>(real_.split(color, -key));
  }
  void barrier() override { real_.barrier(); }
  void broadcast(std::span<std::byte> data, int root) override { real_.broadcast(data, root); }
  void all_gather_v(std::span<const std::byte> send, std::span<std::byte> recv,
                    std::span<const int64_t> recv_bytes) override {
    real_.all_gather_v(send, recv, recv_bytes);
  }
  void all_reduce(std::span<std::byte>, comm::DType, comm::Reduce) override {}
  comm::Work start_all_to_all_v(std::span<const std::byte>, std::span<const int64_t>, std::span<std::byte>,
                                std::span<const int64_t>) override {
    return {};
  }
  std::vector<int> hosts() override { return real_.hosts(); }
  std::shared_ptr<comm::SharedMemory> share(int64_t bytes) override { return real_.share(bytes); }
  void wait_until(const std::function<bool()>& done) override { real_.wait_until(done); }
  void abort(int, const std::string&) override {}

 private:
  comm::Group real_;
};

TEST(MeshRanksTest, AGroupWithOtherMembersIsNoticed) {
  test::run_ranks(2, [](const comm::Group& group) {
    const comm::Group swapped(std::make_shared<SwappedSplit>(group));
    EXPECT_THROW(Mesh(swapped, mesh_sizes(config_of(1, 2, 1, 1, 1, 1), 2)), CommError);
  });
}

}  // namespace
}  // namespace conclave::parallel
