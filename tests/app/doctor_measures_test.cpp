// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "app/doctor_collectives.h"
#include "app/doctor_directory.h"
#include "support/ranks.h"
#include "text/scratch_directory.h"

namespace conclave::app {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(DoctorMeasuresRanks, DirectoryOfAllIsSharedAndLeftAsItWas) {
  const text::ScratchDirectory scratch;
  const std::filesystem::path inside = std::filesystem::path(scratch / "runs") / "deep";
  test::run_ranks(3, [&](const comm::Group& group) { EXPECT_TRUE(probe_directory(group, inside).shared()); });
  EXPECT_FALSE(std::filesystem::exists(scratch / "runs"));
}

// As if hosts had a disk each under the same name.
TEST(DoctorMeasuresRanks, DirectoryThatIsNotSharedIsNoticedByAll) {
  const text::ScratchDirectory scratch;
  test::run_ranks(3, [&](const comm::Group& group) {
    const auto figures = probe_directory(group, scratch / (group.rank() == 2 ? "b" : "a"), 0.2);
    EXPECT_FALSE(figures.shared());
    EXPECT_THAT(figures.misses, ElementsAre(ElementsAre(2), ElementsAre(2), ElementsAre(0, 1)));
  });
}

TEST(DoctorMeasuresRanks, DirectoryThatCannotBeWrittenSaysWhy) {
  const text::ScratchDirectory scratch;
  std::ofstream(scratch / "plain") << "a file";
  test::run_ranks(2, [&](const comm::Group& group) {
    const auto figures = probe_directory(group, scratch / (group.rank() == 1 ? "plain" : "a"), 0.2);
    EXPECT_THAT(figures.problems, ElementsAre("", HasSubstr("cannot")));
    EXPECT_THAT(figures.misses[0], IsEmpty()) << "who could not write is not missed as well";
  });
}

TEST(DoctorMeasuresRanks, ThreadsShareAClock) {
  test::run_ranks(3, [](const comm::Group& group) {
    const auto clocks = measure_clocks(group);
    ASSERT_EQ(clocks.size(), 3u);
    EXPECT_EQ(clocks[0].offset, 0);
    for (const auto& clock : clocks) {
      EXPECT_LE(std::abs(clock.offset), clock.error + 1e-6);
      EXPECT_LT(clock.error, 0.1);
    }
    EXPECT_GT(clocks[2].error, 0);
  });
}

TEST(DoctorMeasuresRanks, CollectivesOfEverySizeAreTimed) {
  test::run_ranks(2, [](const comm::Group& group) {
    const std::vector<int64_t> sizes{1024, 1 << 20};
    const auto figures = measure_collectives(group, sizes, 0.01);
    ASSERT_EQ(figures.size(), 2u);
    EXPECT_EQ(figures[1].bytes, 1 << 20);
    EXPECT_GT(figures[1].all_to_all, 0);
    EXPECT_GT(figures[1].all_reduce, 0);
  });
}

TEST(DoctorMeasures, RatesCountWhatARankSends) {
  const CollectiveFigures figures{.bytes = 1000, .all_to_all = 0.5, .all_reduce = 0.25};
  EXPECT_DOUBLE_EQ(all_to_all_rate(figures, 4), 6000);
  EXPECT_DOUBLE_EQ(all_reduce_rate(figures, 4), 6000);
}

}  // namespace
}  // namespace conclave::app
