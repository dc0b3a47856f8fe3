// SPDX-License-Identifier: Apache-2.0
#include "sweep/runner.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "sweep/child.h"
#include "sweep/folder.h"
#include "text/scratch_directory.h"

namespace conclave::sweep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Fails the test, rather than to wait for ever: its signals are blocked.
void wait_until(const std::function<bool()>& holds) {
  for (int i = 0; i < 20000; ++i) {
    if (holds()) return;
    usleep(1000);
  }
  ADD_FAILURE() << "waited 20 s in vain";
}

class RunnerTest : public testing::Test {
 protected:
  RunnerTest() { block_runner_signals(); }

  Job job(const std::string& name, const std::string& behaviour) const {
    const std::string run = scratch_ / ("runs/" + name);
    const std::string fake = std::string(CONCLAVE_SOURCE_DIR) + "/tests/sweep/fake_run.sh";
    return {name, behaviour, {fake, behaviour, run, "d1", "10"}, scratch_ / ("jobs/" + name), run, "d1", 10};
  }
  std::vector<Job> jobs(const std::vector<std::string>& behaviours) const {
    std::vector<Job> result;
    for (const auto& behaviour : behaviours) result.push_back(job(behaviour, behaviour));
    return result;
  }
  int run(const std::vector<Job>& jobs, const RunnerOptions& options = {}) {
    return Runner(jobs, options, *log_).run();
  }
  std::string text(const std::string& name) const {
    std::ifstream file(scratch_ / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  int64_t starts(const std::string& name) const {
    const std::string lines = text("runs/" + name + "/starts");
    return std::count(lines.begin(), lines.end(), '\n');
  }
  History history(const std::string& name) const {
    return read_history(scratch_ / ("jobs/" + name + "/journal.jsonl"));
  }

  text::ScratchDirectory scratch_;
  std::shared_ptr<Log> log_ = make_silent_log();
};

TEST_F(RunnerTest, OneCrashDoesNotStopTheOthersAndGivesTheExitCode) {
  EXPECT_EQ(run({job("a", "good"), job("b", "crash"), job("c", "good"), job("d", "good")}, {2, false}), 81);
  for (const char* name : {"a", "b", "c", "d"}) EXPECT_EQ(starts(name), 1) << name;
  EXPECT_EQ(history("b").ending->code, 81);
  EXPECT_THAT(history("b").ending->tail, HasSubstr("loss is nan"));
  EXPECT_EQ(history("c").ending->code, 0);
}

TEST_F(RunnerTest, StartsNothingTwiceThatIsDoneOrFailedUnlessAsked) {
  const auto all = jobs({"good", "crash"});
  EXPECT_EQ(run(all), 81);
  EXPECT_EQ(run(all), 81) << "it still has not been made";
  EXPECT_EQ(starts("good"), 1);
  EXPECT_EQ(starts("crash"), 1);
  EXPECT_EQ(run(all, {1, true}), 81);
  EXPECT_EQ(starts("good"), 1);
  EXPECT_EQ(starts("crash"), 2);
}

TEST_F(RunnerTest, AResultOfAnotherConfigurationOrLengthIsNone) {
  auto one = job("a", "good");
  EXPECT_EQ(run({one}), 0);
  one.digest = "d2";
  one.command[3] = "d2";
  EXPECT_EQ(run({one}), 0);
  EXPECT_EQ(starts("a"), 2);
  one.steps = 20;
  EXPECT_EQ(run({one}), 70) << "it ends with 0, but the result is of 10 steps";
  EXPECT_EQ(starts("a"), 3);
}

TEST_F(RunnerTest, GoesOnWithARunThatSavedAsOftenAsItSaves) {
  EXPECT_EQ(run(jobs({"saving"})), 0);
  EXPECT_EQ(starts("saving"), 4);
}

TEST_F(RunnerTest, TriesOnceMoreAfterASignalAHangOrASaveWithoutProgress) {
  EXPECT_EQ(run(jobs({"killed-once"})), 0);
  EXPECT_EQ(starts("killed-once"), 2);
  EXPECT_EQ(run(jobs({"hung"})), 80);
  EXPECT_EQ(starts("hung"), 2);
  EXPECT_EQ(run(jobs({"stuck"})), 75);
  EXPECT_EQ(starts("stuck"), 2);
}

TEST_F(RunnerTest, AnEndWithoutAResultIsAFailure) {
  EXPECT_EQ(run(jobs({"silent"})), 70);
  EXPECT_THAT(history("silent").ending->tail, HasSubstr("without a result"));
}

TEST_F(RunnerTest, SaysWhenAProgramCannotBeExecuted) {
  auto one = job("a", "good");
  one.command[0] = "/no/such/program";
  EXPECT_EQ(run({one}), 127);
  EXPECT_THAT(history("a").ending->tail, HasSubstr("/no/such/program: cannot be executed: No such file"));
}

TEST_F(RunnerTest, RunsSoManyAtATimeOnTheirShareOfTheCores) {
  const auto cores = usable_cores();
  std::vector<Job> all;
  for (const char* name : {"a", "b", "c"}) all.push_back(job(name, "alone"));
  EXPECT_EQ(run(all), 0);
  EXPECT_EQ(text("runs/overlaps"), "") << "one at a time";
  EXPECT_EQ(text("runs/a/starts"), fmt::format("start {0} {0}\n", cores.size()));
  std::vector<Job> more;
  for (const char* name : {"d", "e"}) more.push_back(job(name, "together"));
  EXPECT_EQ(run(more, {2, false}), 0) << "two at a time";
}

TEST(ShareOfCores, IsConsecutiveAndWhole) {
  const std::vector<int> cores{2, 3, 5, 7, 8};
  EXPECT_THAT(share_of_cores(cores, 0, 2), ElementsAre(2, 3));
  EXPECT_THAT(share_of_cores(cores, 1, 2), ElementsAre(5, 7, 8));
  EXPECT_THAT(share_of_cores(cores, 6, 8), ElementsAre(3)) << "more slots than cores: shared";
}

// A signal that waits for the process, as from a user's keyboard, once the job can hear it.
TEST_F(RunnerTest, OnASignalJobsSaveAndTheSameCommandGoesOn) {
  const auto all = std::vector{job("a", "patient"), job("b", "good")};
  std::thread user([&] {
    wait_until([&] { return std::filesystem::exists(scratch_ / "runs/a/ready"); });
    ::kill(::getpid(), SIGTERM);
  });
  EXPECT_EQ(run(all), 75);
  user.join();
  EXPECT_EQ(starts("b"), 0) << "nothing new is started";
  EXPECT_EQ(history("a").ending->code, 75);
  EXPECT_EQ(run(all), 0);
  EXPECT_EQ(starts("a"), 2);
  EXPECT_EQ(starts("b"), 1);
}

TEST_F(RunnerTest, KillsWhatAKilledRunnerLeftBehind) {
  const auto left = job("a", "patient");
  std::filesystem::create_directories(left.folder);
  const pid_t process = start_child({left.command, {}, left.folder / "out", left.folder / "err"});
  record_start(left.folder / "journal.jsonl", process, start_ticks(process));
  wait_until([&] { return std::filesystem::exists(scratch_ / "runs/a/ready"); });
  EXPECT_EQ(run({left}), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(process, &status, WNOHANG), process);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
}

TEST_F(RunnerTest, AnotherProcessOfTheSameNumberIsLeftAlone) {
  const auto mine = job("a", "good");
  std::filesystem::create_directories(mine.folder);
  record_start(mine.folder / "journal.jsonl", ::getpid(), start_ticks(::getpid()) - 1);
  EXPECT_EQ(run({mine}), 0);
}

TEST_F(RunnerTest, ChildrenDieWithTheirParent) {
  const auto orphan = job("a", "patient");
  std::filesystem::create_directories(orphan.folder);
  const pid_t parent = ::fork();
  if (parent == 0) {
    const pid_t child = start_child({orphan.command, {}, orphan.folder / "out", orphan.folder / "err"});
    record_start(orphan.folder / "journal.jsonl", child, start_ticks(child));
    for (;;) ::pause();
  }
  wait_until([&] { return std::filesystem::exists(scratch_ / "runs/a/ready") && history("a").starts == 1; });
  const History seen = history("a");
  ASSERT_EQ(start_ticks(seen.process), seen.ticks);
  ::kill(parent, SIGKILL);
  int status = 0;
  ::waitpid(parent, &status, 0);
  wait_until([&] { return start_ticks(seen.process) != seen.ticks; });
}

TEST(SweepJournal, PassesOverALineThatAKillCutShort) {
  const text::ScratchDirectory scratch;
  const auto journal =
      scratch.write("journal.jsonl", "\n{\"event\":\"start\",\"process\":7,\"ticks\":9}\n\n{\"event\":\"en");
  History history = read_history(journal);
  EXPECT_EQ(history.starts, 1);
  EXPECT_FALSE(history.ending);
  record_end(journal, {75, 0, "tail \xff"});
  history = read_history(journal);
  EXPECT_EQ(history.ending->code, 75);
}

}  // namespace
}  // namespace conclave::sweep
