// SPDX-License-Identifier: Apache-2.0
#include "app/doctor_command.h"

#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "app/doctor_report.h"
#include "support/ranks.h"
#include "text/scratch_directory.h"

namespace conclave::app {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Three hosts with two ranks each, nothing wrong with them.
Diagnosis healthy() {
  Diagnosis d;
  d.transport = std::string("mpi");
  d.hosts = {"h1", "h2", "h3"};
  d.host_of = {0, 0, 1, 1, 2, 2};
  d.largest_host = 2;
  d.directory = "runs";
  for (int r = 0; r < 6; ++r)
    d.facts.push_back({.host = d.hosts[d.host_of[r]],
                       .program = "p",
                       .mpi = "m",
                       .cpu = "c",
                       .cores = 8,
                       .threads = 4,
                       .memory = 64000000000,
                       .free = 60000000000,
                       .shared = 32000000000,
                       .files = 65536,
                       .locked = -1,
                       .core_dump = 0,
                       .yields = "",
                       .links = "2",
                       .keepalive = "4"});
  d.clocks.resize(6);
  d.files = {std::vector<std::string>(6), std::vector<std::vector<int>>(6)};
  d.gflops.assign(6, 100);
  d.between = {{0, 1, 2e-5, 1e9}, {0, 2, 2e-5, 1e9}, {1, 2, 2e-5, 1e9}};
  d.within = {{0, 1, 1e-6, 9e9}, {2, 3, 1e-6, 9e9}, {4, 5, 1e-6, 9e9}};
  d.all_within = d.all_between = {{1 << 20, 1e-3, 2e-3}};
  return d;
}

std::vector<std::string> texts(const std::vector<Finding>& findings, ExitCode code) {
  std::vector<std::string> found;
  for (const auto& finding : findings) {
    EXPECT_EQ(finding.code, code) << finding.text;
    found.push_back(finding.text);
  }
  return found;
}

TEST(DoctorCommand, HasNothingToComplainAboutWhereAllIsWell) {
  EXPECT_THAT(texts(findings_of(healthy()), ExitCode::kDone), IsEmpty());
  EXPECT_THAT(report_text(healthy(), {}), HasSubstr("nothing to complain about"));
}

TEST(DoctorCommand, AnotherProgramIsAFaultOfConfiguration) {
  auto d = healthy();
  d.facts[2].program = d.facts[3].program = "q";
  EXPECT_THAT(
      texts(findings_of(d), ExitCode::kConfig),
      ElementsAre(AllOf(HasSubstr("another program on ranks 2-3 on h2: q; elsewhere p"), HasSubstr("Build once"))));
}

TEST(DoctorCommand, ADirectoryThatIsNotSharedIsAFaultOfInput) {
  auto d = healthy();
  d.files.misses[4] = {0, 1};
  d.files.problems[5] = "cannot write there: no space";
  EXPECT_THAT(
      texts(findings_of(d), ExitCode::kIo),
      ElementsAre(HasSubstr("rank 5 on h3, directory runs: cannot write there: no space"),
                  HasSubstr("directory runs is not shared by all hosts: rank 4 on h3 cannot see what all others "
                            "wrote there, rank 4 on h3 for one nothing of ranks 0-1 on h1")));
}

TEST(DoctorCommand, NamesTheHostWithTheSlowLinkTheSlowRankAndTheWrongClock) {
  auto d = healthy();
  d.between[0].bandwidth = d.between[2].bandwidth = 1e8;
  d.gflops[4] = 40;
  d.clocks[2] = d.clocks[3] = {-3, 1e-3};
  EXPECT_THAT(texts(findings_of(d), ExitCode::kDone),
              ElementsAre(HasSubstr("host h2: its clock is 3.0 s behind that of h1"),
                          HasSubstr("rank 4 on h3 computes with 40.0 GFLOP/s, others with 100.0"),
                          HasSubstr("host h2 is slow to all others")));
}

TEST(DoctorCommand, WarnsOfScarceResourcesAndMissingSettings) {
  auto d = healthy();
  for (auto& facts : d.facts) facts.links.clear(), facts.keepalive.clear();
  for (const int r : {4, 5})
    d.facts[r].shared = 1000000, d.facts[r].files = 100, d.facts[r].memory /= 2, d.facts[r].threads = 5;
  EXPECT_THAT(
      texts(findings_of(d), ExitCode::kDone),
      ElementsAre(HasSubstr("host h3 has 32.0 GB of memory, others 64.0"), HasSubstr("1 MB free in /dev/shm for 2"),
                  HasSubstr("at most 100 open files"), HasSubstr("2 ranks of 5 threads on 8 cores"),
                  HasSubstr("btl_tcp_links 2"), HasSubstr("oob_tcp_keepalive_time")));
}

TEST(DoctorCommand, WithMoreRanksThanCoresTheSchedulerIsNotBlamedOnARank) {
  auto d = healthy();
  const std::string yes("1");
  for (auto& facts : d.facts) facts.cores = facts.threads = 1, facts.yields = yes;
  d.gflops[4] = 40;
  EXPECT_THAT(texts(findings_of(d), ExitCode::kDone), IsEmpty());
}

// Two hosts of two threads each: every figure is there, on every rank, and the directory is as before.
TEST(DoctorCommandRanks, MeasuresEverythingOverThreads) {
  const text::ScratchDirectory scratch;
  test::run_ranks(4, [&](const comm::Group& group) {
    const auto d = diagnose(group, {"a", "b", "a", "b"}, 1,
                            {.directory = scratch / "runs", .seconds = 0.002, .largest = 16 << 10, .compute = false});
    EXPECT_EQ(d.hosts, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(d.largest_host, 2);
    ASSERT_EQ(d.between.size(), 1u);
    ASSERT_EQ(d.within.size(), 2u);
    EXPECT_EQ(std::pair(d.within[1].a, d.within[1].b), std::pair(1, 3)) << "numbered as in the world";
    EXPECT_EQ(d.all_within.size(), 2u);
    EXPECT_EQ(d.all_between.size(), 2u);
    const auto json = report_json(d, findings_of(d));
    EXPECT_EQ(json["ranks"].size(), 4u);
    EXPECT_EQ(json["directory_shared"], true);
    EXPECT_EQ(json["links_within_hosts"][1]["a"], "rank 1 on b");
    const auto all = group.all_gather_value(d.within[0].bandwidth);
    EXPECT_EQ(all, std::vector<double>(4, d.within[0].bandwidth));
  });
}

int doctor(std::vector<std::string> words) {
  CLI::App app{"conclave"};
  std::function<int()> run;
  add_doctor_command(app, run);
  words.insert(words.begin(), "doctor");
  std::reverse(words.begin(), words.end());
  app.parse(words);
  return run();
}

TEST(DoctorCommand, LooksAtThisMachineAlone) {
  const text::ScratchDirectory scratch;
  EXPECT_EQ(doctor({"--directory", scratch / "runs", "--json", scratch / "doctor.json"}), 0);
  std::ifstream in(scratch / "doctor.json");
  const auto json = nlohmann::json::parse(in);
  EXPECT_EQ(json["ranks"].size(), 1u);
  EXPECT_GT(json["ranks"][0]["gflops"], 0);
  EXPECT_GT(json["ranks"][0]["memory_bytes"], 1 << 20);
  EXPECT_THAT(json["ranks"][0]["mpi"], HasSubstr("MPI"));
}

TEST(DoctorCommand, ADirectoryThatCannotBeMadeEndsWith74) {
  EXPECT_EQ(doctor({"--directory", "/proc/conclave", "--no-compute"}), static_cast<int>(ExitCode::kIo));
}

TEST(DoctorCommand, HasAnExampleInItsHelp) {
  CLI::App app{"conclave"};
  std::function<int()> run;
  add_doctor_command(app, run);
  EXPECT_THAT(app.get_subcommand("doctor")->help(),
              AllOf(HasSubstr("Example:"), HasSubstr("launch/run"), HasSubstr("74")));
}

}  // namespace
}  // namespace conclave::app
