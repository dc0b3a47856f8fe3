// SPDX-License-Identifier: Apache-2.0
// Conducts processes: so many at a time, each on its share of the cores, every one to its end whatever happens to the
// others. Knows commands, folders and exit codes; what a run is it learns from its files alone, so a runner that was
// killed goes on from them.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/log.h"
#include "sweep/journal.h"

namespace conclave::sweep {

struct Job {
  std::string id, label;
  std::vector<std::string> command;  // ends with 0 and a result, or continues when it is given again
  std::filesystem::path folder;      // logs and journal
  std::filesystem::path run;         // directory of the run
  std::string digest;                // of its configuration
  int64_t steps = 0;
};

struct RunnerOptions {
  size_t jobs = 1;     // at a time
  bool retry = false;  // start again what failed before
};

// Blocks the signals that a Runner waits for. Call it before the process has a second thread.
void block_runner_signals();

class Runner {
 public:
  // `log` outlives the runner.
  Runner(std::vector<Job> jobs, const RunnerOptions& options, Log& log);

  // Kills what an earlier runner left behind, then starts what is not done. A job that ends with 73 (its
  // directory is taken), 75 (saved), 76 (a peer lost), 80 (hung) or by a signal is started once more, after 75 as often
  // as it has saved something new. SIGINT,
  // SIGTERM, SIGHUP and SIGUSR1 ask the jobs to save and end; a second one kills them. Returns 0, the code of the first
  // job that failed, or 75 after a signal. Must be called from the main thread.
  int run();

 private:
  struct Active {
    size_t job;
    pid_t process;
    std::string checkpoint;  // newest when it started
    std::chrono::steady_clock::time_point since;
  };

  void choose();
  void start(size_t slot);
  bool wait_for_event();
  void ask_to_stop();
  void collect();
  void finish(const Active& active, const Ending& ending);
  bool goes_on(const Active& active, const Ending& ending);
  size_t running() const;
  int exit_code() const;

  std::vector<Job> jobs_;
  RunnerOptions options_;
  Log& log_;
  std::vector<int> cores_;
  std::deque<size_t> waiting_;
  std::vector<std::optional<Active>> slots_;
  std::map<size_t, int> failed_;  // exit codes
  std::map<size_t, bool> tried_again_;
  size_t done_ = 0;
  bool stopping_ = false;
};

}  // namespace conclave::sweep
