// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/run_directory.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>

#include "checkpoint/fixture.h"

namespace conclave::checkpoint {
namespace {

using Clock = std::chrono::steady_clock;

RunDirectoryOptions quick() { return {{0.05, 0.5}, 2}; }

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A process that opens the directory, reports through its pipe, and stays.
class Owner {
 public:
  explicit Owner(
      const path& where, const std::function<int(RunDirectory&)>& then = [](RunDirectory&) {
        ::pause();
        return 0;
      }) {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) throw IoError("no pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      int code = 0;
      try {
        RunDirectory directory(comm::Group(), where, quick(), *make_silent_log());
        if (::write(ends[1], "y", 1) != 1) ::_exit(2);
        code = then(directory);
      } catch (const Error& error) {
        code = static_cast<int>(error.code());
      }
      ::_exit(code);
    }
    ::close(ends[1]);
    char ready = 'n';
    owns_ = ::read(ends[0], &ready, 1) == 1 && ready == 'y';
    ::close(ends[0]);
  }
  ~Owner() {
    if (pid_ > 0) kill_now();
  }
  bool owns() const { return owns_; }
  pid_t pid() const { return pid_; }
  int wait() {
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  void kill_now() {
    ::kill(pid_, SIGKILL);
    wait();
  }

 private:
  pid_t pid_ = -1;
  bool owns_ = false;
};

TEST(RunDirectoryTest, AFolderOfSomebodysDocumentsIsRefusedAndLeftAsItWas) {
  const Scratch folder;
  std::ofstream(folder.where() / "thesis.txt") << "years of work";
  try {
    RunDirectory directory(comm::Group(), folder.where(), quick(), *make_silent_log());
    FAIL() << "a run was started among documents";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("thesis.txt"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder.where() / "checkpoints"));
}

TEST(RunDirectoryTest, KeepsItsIdentityAndGivesEveryStartItsOwn) {
  const Scratch scratch;
  const auto log = make_silent_log();
  std::string run, attempt;
  {
    RunDirectory directory(comm::Group(), scratch.run(), quick(), *log);
    run = directory.run_id();
    attempt = directory.attempt();
    directory.write(comm::Group(), "env.json", "{}\n");
    EXPECT_EQ(slurp(scratch.run() / "env.json"), "{}\n");
    EXPECT_TRUE(std::filesystem::exists(scratch.run() / "LOCK"));
  }
  EXPECT_FALSE(std::filesystem::exists(scratch.run() / "LOCK"));
  RunDirectory again(comm::Group(), scratch.run(), quick(), *log);
  EXPECT_EQ(again.run_id(), run);
  EXPECT_NE(again.attempt(), attempt);
}

TEST(RunDirectoryTest, ALiveOwnerKeepsIt) {
  const Scratch scratch;
  Owner owner(scratch.run());
  ASSERT_TRUE(owner.owns());
  const auto start = Clock::now();
  const auto message = message_of([&] { RunDirectory(comm::Group(), scratch.run(), quick(), *make_silent_log()); });
  EXPECT_LT(seconds_since(start), 30);
  EXPECT_THAT(message, testing::HasSubstr("belongs to a live run"));
  EXPECT_THAT(message, testing::HasSubstr("process " + std::to_string(owner.pid())));
  EXPECT_THROW(RunDirectory(comm::Group(), scratch.run(), quick(), *make_silent_log()), OwnedError);
}

TEST(RunDirectoryTest, ADeadOwnersDirectoryIsTakenAtOnce) {
  const Scratch scratch;
  Owner owner(scratch.run());
  ASSERT_TRUE(owner.owns());
  owner.kill_now();
  EXPECT_TRUE(std::filesystem::exists(scratch.run() / "LOCK"));
  RunDirectoryOptions patient = quick();
  patient.lock.lease_seconds = 60;
  const auto start = Clock::now();
  const RunDirectory directory(comm::Group(), scratch.run(), patient, *make_silent_log());
  EXPECT_LT(seconds_since(start), 30);
  EXPECT_NO_THROW(directory.check_still_ours());
}

// The process number of a LOCK from another host means nothing here: only its counter counts.
TEST(RunDirectoryTest, AnOwnerElsewhereLosesItOnlyAfterTheLease) {
  const Scratch scratch;
  std::filesystem::create_directories(scratch.run());
  for (const std::string lock :
       {R"({"beat":1,"attempt":"a","host":"elsewhere","pid":1,"space":"x","run":"r"})", "rubbish", ""}) {
    spill(scratch.run() / "LOCK", lock);
    const auto start = Clock::now();
    const RunDirectory directory(comm::Group(), scratch.run(), quick(), *make_silent_log());
    EXPECT_GE(seconds_since(start), 0.5) << lock;
    EXPECT_NO_THROW(directory.check_still_ours());
  }
}

TEST(RunDirectoryTest, AnOwnerThatStoodStillIsFencedAndHarmsNothing) {
  const Scratch scratch;
  Owner owner(scratch.run(), [](RunDirectory& directory) {
    for (;;) {
      directory.check_still_ours();
      ::usleep(5000);
    }
    return 0;
  });
  ASSERT_TRUE(owner.owns());
  ::kill(owner.pid(), SIGSTOP);
  const RunDirectory directory(comm::Group(), scratch.run(), quick(), *make_silent_log());
  ::kill(owner.pid(), SIGCONT);
  EXPECT_EQ(owner.wait(), 73);
  EXPECT_NO_THROW(directory.check_still_ours());  // the revived beats went to the old file
  EXPECT_TRUE(std::filesystem::exists(scratch.run() / "LOCK"));
}

TEST(RunDirectoryTest, ASaveAfterALostLeaseCommitsNothing) {
  const Scratch scratch;
  SingleRun run(scratch.run());
  run.save(1);
  auto text = slurp(scratch.run() / "LOCK");
  text.replace(text.find(run.store.directory().attempt()), 4, "ffff");
  write_file_atomically(scratch.run() / "LOCK", text);
  EXPECT_THROW(run.save(2), OwnedError);
  EXPECT_EQ(list_steps(scratch.run() / "checkpoints"), std::vector<int64_t>{1});
}

TEST(RunDirectoryTest, OfManyStartsAtOnceOneRuns) {
  const Scratch scratch;
  int running = 0, refused = 0;
  std::vector<pid_t> children;
  for (int i = 0; i < 12; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        const RunDirectory directory(comm::Group(), scratch.run(), quick(), *make_silent_log());
        ::sleep(3);
        directory.check_still_ours();
        ::_exit(0);
      } catch (const Error& error) {
        ::_exit(static_cast<int>(error.code()));
      }
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    running += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    refused += WIFEXITED(status) && WEXITSTATUS(status) == 73;
  }
  EXPECT_EQ(running, 1);
  EXPECT_EQ(refused, 11);
}

TEST(RunDirectoryTest, RefusesWhatIsNoRunDirectory) {
  const Scratch scratch;
  spill(scratch.where() / "file", "x");
  const auto open = [&](const path& where) { RunDirectory(comm::Group(), where, quick(), *make_silent_log()); };
  EXPECT_THROW(open(scratch.where() / "file"), IoError);
  EXPECT_THROW(open("/proc/no"), IoError);
  std::filesystem::create_directories(scratch.run());
  for (const char* json : {"", "{}", R"({"format":"other","version":1,"run":"x"})",
                           R"({"format":"conclave-run","version":9,"run":"x"})"}) {
    spill(scratch.run() / "RUN.json", json);
    EXPECT_THROW(open(scratch.run()), DataError) << json;
  }
}

TEST(RunDirectoryTest, AnAtomicWriteReplacesTheWholeFileAndLeavesNothingElse) {
  const Scratch scratch;
  write_file_atomically(scratch.where() / "x", "first, longer");
  write_file_atomically(scratch.where() / "x", "second");
  EXPECT_EQ(slurp(scratch.where() / "x"), "second");
  EXPECT_FALSE(create_file_atomically(scratch.where() / "x", "third"));
  EXPECT_EQ(slurp(scratch.where() / "x"), "second");
  EXPECT_EQ(entries(scratch.where()), std::vector<std::string>{"x"});
  EXPECT_THROW(write_file_atomically(scratch.where() / "none" / "x", ""), IoError);
}

TEST(RunDirectoryRanksTest, AllRanksShareOneIdentityAndOneError) {
  const Scratch scratch;
  std::mutex mutex;
  std::vector<std::string> attempts;
  test::run_ranks(4, [&](const comm::Group& group) {
    const RunDirectory directory(group, scratch.run(), quick(), *make_silent_log());
    const std::scoped_lock hold(mutex);
    attempts.push_back(directory.attempt());
  });
  EXPECT_EQ(attempts, std::vector<std::string>(4, attempts.front()));
  Owner owner(scratch.run());
  ASSERT_TRUE(owner.owns());
  std::atomic<int> refused = 0;
  test::run_ranks(4, [&](const comm::Group& group) {
    try {
      RunDirectory(group, scratch.run(), quick(), *make_silent_log());
    } catch (const OwnedError&) {
      ++refused;
    }
  });
  EXPECT_EQ(refused, 4);
}

TEST(RunDirectoryRanksTest, RanksOnDifferentFoldersAreToldSo) {
  const Scratch scratch;
  std::atomic<int> refused = 0;
  test::run_ranks(2, [&](const comm::Group& group) {
    auto options = quick();
    options.visible_seconds = 0.2;
    try {
      RunDirectory(group, scratch.where() / std::to_string(group.rank()), options, *make_silent_log());
    } catch (const IoError& error) {
      refused += std::string(error.what()).find("shared file system") != std::string::npos;
    }
  });
  EXPECT_EQ(refused, 2);
}

}  // namespace
}  // namespace conclave::checkpoint
