// SPDX-License-Identifier: Apache-2.0
#include "sweep/runner.h"

#include <sys/wait.h>

#include <csignal>
#include <ctime>
#include <fstream>

#include "core/error.h"
#include "sweep/child.h"
#include "sweep/folder.h"

namespace conclave::sweep {
namespace {

namespace fs = std::filesystem;

constexpr int kSignalBase = 128;  // exit code of a shell for a program that a signal ended

sigset_t runner_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP, SIGUSR1}) sigaddset(&signals, signal);
  return signals;
}

std::string newest_checkpoint(const fs::path& run) {
  std::string newest;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", error)) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("step-")) newest = std::max(newest, name);
  }
  return newest;
}

// The last lines of a log, a page at most.
std::string tail_of(const fs::path& file) {
  constexpr std::streamoff kMost = 2000;
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  if (!stream) return "";
  stream.seekg(std::max<std::streamoff>(0, stream.tellg() - kMost));
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  text.erase(text.find_last_not_of(" \n") + 1);
  return text;
}

Ending ending_of(int status) {
  if (WIFSIGNALED(status)) return {kSignalBase + WTERMSIG(status), WTERMSIG(status), ""};
  return {WEXITSTATUS(status), 0, ""};
}

bool is(const Ending& ending, ExitCode code) { return ending.code == static_cast<int>(code); }

}  // namespace

void block_runner_signals() {
  const sigset_t signals = runner_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

Runner::Runner(std::vector<Job> jobs, const RunnerOptions& options, Log& log)
    : jobs_(std::move(jobs)), options_(options), log_(log), cores_(usable_cores()), slots_(options.jobs) {}

int Runner::run() {
  choose();
  while (!waiting_.empty() || running() > 0) {
    for (size_t slot = 0; slot < slots_.size() && !stopping_; ++slot) {
      if (!slots_[slot] && !waiting_.empty()) start(slot);
    }
    if (running() == 0) break;
    if (wait_for_event()) ask_to_stop();
    collect();
  }
  log_.info("{} of {} done, {} failed, {} left", done_, jobs_.size(), failed_.size(),
            jobs_.size() - done_ - failed_.size());
  return exit_code();
}

void Runner::choose() {
  for (size_t i = 0; i < jobs_.size(); ++i) {
    const Job& job = jobs_[i];
    const History history = read_history(job.folder / "journal.jsonl");
    if (!history.ending) kill_session(history.process, history.ticks);
    if (is_done(job.run, job.digest, job.steps)) {
      ++done_;
    } else if (history.ending && history.ending->failed() && !options_.retry) {
      failed_[i] = history.ending->code;
      log_.warn("{} {} failed before (exit code {}); --retry starts it again", job.id, job.label, history.ending->code);
    } else {
      waiting_.push_back(i);
    }
  }
  if (done_ > 0) log_.info("{} of {} are done already", done_, jobs_.size());
}

void Runner::start(size_t slot) {
  const size_t number = waiting_.front();
  waiting_.pop_front();
  const Job& job = jobs_[number];
  fs::create_directories(job.folder);
  const auto cores = share_of_cores(cores_, slot, slots_.size());
  const auto checkpoint = newest_checkpoint(job.run);
  const pid_t process = start_child({job.command, cores, job.folder / "stdout.log", job.folder / "stderr.log"});
  slots_[slot] = Active{number, process, checkpoint, std::chrono::steady_clock::now()};
  record_start(job.folder / "journal.jsonl", process, start_ticks(process));
  log_.info("[{}/{}] start {} {}{} on {} core{}", number + 1, jobs_.size(), job.id, job.label,
            checkpoint.empty() ? "" : " from " + checkpoint, cores.size(), cores.size() == 1 ? "" : "s");
}

// True when someone asks the runner to end.
bool Runner::wait_for_event() {
  const sigset_t signals = runner_signals();
  const timespec second{1, 0};
  const int signal = sigtimedwait(&signals, nullptr, &second);
  return signal > 0 && signal != SIGCHLD;
}

void Runner::ask_to_stop() {
  log_.warn("{}", stopping_ ? "killing the jobs; each goes on from its last checkpoint"
                            : "asking the jobs to save and end; a second signal kills them");
  for (const auto& active : slots_) {
    if (active) ::kill(stopping_ ? -active->process : active->process, stopping_ ? SIGKILL : SIGUSR1);
  }
  stopping_ = true;
}

void Runner::collect() {
  for (auto& slot : slots_) {
    int status = 0;
    if (!slot || ::waitpid(slot->process, &status, WNOHANG) != slot->process) continue;
    const Active active = *slot;
    slot.reset();
    finish(active, ending_of(status));
  }
}

void Runner::finish(const Active& active, const Ending& how) {
  const Job& job = jobs_[active.job];
  Ending ending = how;
  const bool done = is_done(job.run, job.digest, job.steps);
  if (!done && ending.code == 0) ending = {static_cast<int>(ExitCode::kBug), 0, "ended without a result"};
  // Asked to stop before it could listen, or killed on request: nothing of its own went wrong.
  if (stopping_ && ending.signal != 0) ending.code = static_cast<int>(ExitCode::kRequeue);
  if (!done && ending.tail.empty()) ending.tail = tail_of(job.folder / "stderr.log");
  record_end(job.folder / "journal.jsonl", done ? Ending{} : ending);
  const auto what = fmt::format("[{}/{}]", active.job + 1, jobs_.size());
  if (done) {
    ++done_;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - active.since;
    log_.info("{} done  {} {} in {:.1f} s", what, job.id, job.label, took.count());
  } else if (stopping_ && is(ending, ExitCode::kRequeue)) {
    waiting_.push_back(active.job);
    log_.info("{} saved {} {}", what, job.id, job.label);
  } else if (!stopping_ && goes_on(active, ending)) {
    waiting_.push_front(active.job);
    log_.warn("{} again {} {} (exit code {})", what, job.id, job.label, ending.code);
  } else {
    failed_[active.job] = ending.code;
    log_.error("{} failed {} {}: exit code {}; {}\n{}", what, job.id, job.label, ending.code,
               (job.folder / "stderr.log").string(), ending.tail);
  }
}

bool Runner::goes_on(const Active& active, const Ending& ending) {
  if (is(ending, ExitCode::kRequeue) && newest_checkpoint(jobs_[active.job].run) > active.checkpoint) return true;
  // kOwned: ranks of a killed launcher may live a moment longer than it did.
  const bool may = ending.signal != 0 || is(ending, ExitCode::kRequeue) || is(ending, ExitCode::kPeerLost) ||
                   is(ending, ExitCode::kHang) || is(ending, ExitCode::kOwned);
  return may && !std::exchange(tried_again_[active.job], true);
}

size_t Runner::running() const {
  return static_cast<size_t>(
      std::count_if(slots_.begin(), slots_.end(), [](const auto& slot) { return slot.has_value(); }));
}

int Runner::exit_code() const {
  if (stopping_ && !waiting_.empty()) return static_cast<int>(ExitCode::kRequeue);
  return failed_.empty() ? 0 : failed_.begin()->second;
}

}  // namespace conclave::sweep
