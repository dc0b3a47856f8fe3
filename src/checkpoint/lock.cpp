// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>
#include <optional>

#include "checkpoint/json_text.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kMaxLock = 64 << 10;
constexpr size_t kCountDigits = 19;

std::string first_line(const char* where) {
  std::ifstream stream(where);
  std::string line;
  std::getline(stream, line);
  return line;
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

// A process number means something only within one boot and one process namespace.
std::string process_space() {
  std::array<char, 256> name{};
  const auto size = ::readlink("/proc/self/ns/pid", name.data(), name.size() - 1);
  return first_line("/proc/sys/kernel/random/boot_id") + " " +
         std::string(name.data(), size > 0 ? static_cast<size_t>(size) : 0);
}

// The counter is the first thing in the file and has a fixed width, so that one small write moves it.
std::string count_text(int64_t count) { return fmt::format("{{\"beat\":{:{}}", count, kCountDigits); }

struct Owner {
  std::string text;  // the whole file, counter included
  std::string attempt, host, space, run;
  int64_t pid = 0;
};

std::optional<std::string> read_lock(const path& where) {
  std::error_code code;
  if (!std::filesystem::exists(std::filesystem::symlink_status(where, code))) return std::nullopt;
  try {
    return read_text(File::open_beneath(where.parent_path(), where.filename().string()), kMaxLock);
  } catch (const IoError&) {
    if (!std::filesystem::exists(std::filesystem::symlink_status(where, code)))
      return std::nullopt;  // given back just now
    throw;
  }
}

// A LOCK we cannot read still counts as somebody's: its bytes are watched like a counter.
Owner parse_owner(const std::string& text, const path& where) {
  Owner owner{text, "", "unknown", "", "unknown", 0};
  try {
    const auto json = parse_json(text, where.string());
    owner = {text,
             text_field(json, "attempt", where.string()),
             text_field(json, "host", where.string()),
             text_field(json, "space", where.string()),
             text_field(json, "run", where.string()),
             count_field(json, "pid", where.string())};
  } catch (const DataError&) {
    owner.text = text;
  }
  return owner;
}

bool certainly_dead(const Owner& owner) {
  if (owner.pid <= 0 || owner.host != host_name() || owner.space != process_space()) return false;
  return ::kill(static_cast<pid_t>(owner.pid), 0) != 0 && errno == ESRCH;
}

// Keeps contenders apart while one of them replaces the LOCK. Where the file system has no locks, the look at the LOCK
// after the replacement decides alone.
class Guard {
 public:
  explicit Guard(const path& where) : descriptor_(::open(where.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) throw IoError("cannot open {}: {}", where.string(), std::generic_category().message(errno));
    while (::flock(descriptor_, LOCK_EX) != 0 && errno == EINTR) continue;
  }
  ~Guard() { ::close(descriptor_); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  int descriptor_;
};

}  // namespace

Lock::Lock(const path& folder, const std::string& run_id, const LockTimes& times, Log& log)
    : where_(folder / "LOCK"), run_id_(run_id), attempt_(random_id()) {
  acquire(times, log);
  thread_ = std::thread([this, seconds = times.beat_seconds] { beat_until_stopped(seconds); });
}

Lock::~Lock() {
  {
    const std::scoped_lock hold(mutex_);
    stop_ = true;
  }
  stop_signal_.notify_all();
  thread_.join();
  try {
    const Guard guard(where_.string() + ".guard");
    check_still_ours();
    ::unlink(where_.c_str());
  } catch (const Error&) {  // someone else's now, or the directory is gone: nothing of ours to give back
    return;
  }
}

void Lock::acquire(const LockTimes& times, Log& log) {
  std::optional<Owner> watched;
  auto since = Clock::now();
  for (;;) {
    const auto text = read_lock(where_);
    if (!text) {
      if (try_replace("")) return;
      continue;
    }
    const auto owner = parse_owner(*text, where_);
    const bool still = watched && watched->text == owner.text;
    if (watched && !still)
      throw OwnedError(
          "{} belongs to a live run: host {}, process {}, run {}. Wait for it to end, or use another --run directory",
          where_.parent_path().string(), owner.host, owner.pid, owner.run);
    const std::chrono::duration<double> waited = Clock::now() - since;
    if (certainly_dead(owner) || (still && waited.count() > times.lease_seconds)) {
      if (try_replace(owner.text)) {
        log.warn("took over {} from host {}, process {}, which no longer runs", where_.string(), owner.host, owner.pid);
        return;
      }
      watched.reset();  // somebody was faster; look at who
      since = Clock::now();
      continue;
    }
    if (!watched) {
      watched = owner;
      since = Clock::now();
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(0.1, times.beat_seconds)));
  }
}

bool Lock::try_replace(const std::string& seen) {
  const Guard guard(where_.string() + ".guard");
  if (read_lock(where_).value_or("") != seen) return false;
  const Json rest = {
      {"attempt", attempt_}, {"host", host_name()}, {"pid", ::getpid()}, {"space", process_space()}, {"run", run_id_}};
  const auto text = fmt::format("{},{}\n", count_text(0), rest.dump().substr(1));
  if (seen.empty() && !std::filesystem::exists(where_)) {
    if (!create_file_atomically(where_, text)) return false;
  } else {
    write_file_atomically(where_, text);
  }
  file_ = std::make_unique<File>(File::open_for_update(where_));
  check_still_ours();
  return true;
}

void Lock::beat() {
  const std::scoped_lock hold(mutex_);
  const auto text = count_text(++count_);
  file_->write_at(0, std::as_bytes(std::span(text)));
  file_->sync();
}

void Lock::check_still_ours() const {
  const auto text = read_lock(where_);
  const auto owner = text ? parse_owner(*text, where_) : Owner{"", "", "nobody", "", "none", 0};
  if (owner.attempt != attempt_)
    throw OwnedError(
        "{} was taken over by host {}, process {}, run {} while this process (attempt {}) did not move; it must stop",
        where_.parent_path().string(), owner.host, owner.pid, owner.run, attempt_);
}

void Lock::beat_until_stopped(double seconds) {
  std::unique_lock hold(mutex_);
  while (!stop_signal_.wait_for(hold, std::chrono::duration<double>(seconds), [this] { return stop_; })) {
    hold.unlock();
    try {
      beat();
    } catch (
        const IoError&) {  // a full or failing disk ends the run at its next save, with a message; the lease may lapse
    }
    hold.lock();
  }
}

}  // namespace conclave::checkpoint
