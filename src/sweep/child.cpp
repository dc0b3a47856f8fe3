// SPDX-License-Identifier: Apache-2.0
#include "sweep/child.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>
#include <thread>

#include "core/error.h"

extern char** environ;  // NOLINT: POSIX declares it nowhere

namespace conclave::sweep {
namespace {

constexpr int kCannotExecute = 127;
constexpr std::string_view kThreads = "OMP_NUM_THREADS=";

int open_log(const std::filesystem::path& file) {
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor < 0) throw IoError("cannot open {}: {}", file.string(), std::generic_category().message(errno));
  return descriptor;
}

std::vector<std::string> environment(size_t cores) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (cores == 0 || !std::string_view(*entry).starts_with(kThreads)) variables.emplace_back(*entry);
  }
  if (cores > 0) variables.push_back(std::string(kThreads) + std::to_string(cores));
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (std::string& text : texts) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

// All that the child needs, made before the fork: afterwards nothing may allocate, since another thread of the parent
// may have held the allocator's lock.
struct Prepared {
  std::vector<char*> command, environment;
  cpu_set_t cores;
  bool bind;
  int out, err;
  pid_t parent;
};

[[noreturn]] void become(const Prepared& p) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != p.parent) ::_exit(kCannotExecute);  // the parent died before the line above
  ::setsid();
  if (p.bind) ::sched_setaffinity(0, sizeof p.cores, &p.cores);
  const int nothing = ::open("/dev/null", O_RDONLY);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(p.out, STDOUT_FILENO);
  ::dup2(p.err, STDERR_FILENO);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve(p.command[0], p.command.data(), p.environment.data());
  const std::array<const char*, 4> said{p.command[0], ": cannot be executed: ", std::strerror(errno), "\n"};
  for (const char* part : said) {
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  }
  ::_exit(kCannotExecute);
}

}  // namespace

pid_t start_child(const ChildOptions& options) {
  auto command = options.command;
  auto variables = environment(options.cores.size());
  Prepared prepared{pointers(command), pointers(variables), {}, !options.cores.empty(), -1, -1, ::getpid()};
  CPU_ZERO(&prepared.cores);
  for (const int core : options.cores) CPU_SET(static_cast<size_t>(core), &prepared.cores);
  prepared.out = open_log(options.out);
  prepared.err = open_log(options.err);
  const pid_t child = ::fork();
  if (child == 0) become(prepared);
  const int error = errno;
  ::close(prepared.out);
  ::close(prepared.err);
  if (child < 0) throw IoError("cannot start a process: {}", std::generic_category().message(error));
  return child;
}

int64_t start_ticks(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t name_end = text.rfind(')');  // the name may hold blanks and brackets
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  fields >> field;
  if (field == "Z") return 0;     // dead, and waited for by nobody yet
  constexpr int kStartTime = 22;  // proc(5); the state is the third field
  for (int i = 3; i < kStartTime; ++i) fields >> field;
  return std::strtoll(field.c_str(), nullptr, 10);
}

void kill_session(pid_t process, int64_t ticks) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (process > 0 && ticks > 0 && start_ticks(process) == ticks) {
    ::kill(-process, SIGKILL);  // the leader of a session leads its first group, too
    ::kill(process, SIGKILL);
    if (std::chrono::steady_clock::now() > end) {
      throw OwnedError("process {} of an earlier start of this sweep cannot be killed; end it, then repeat the command",
                       process);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

std::vector<int> usable_cores() {
  cpu_set_t set;
  std::vector<int> cores;
  if (::sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(static_cast<size_t>(core), &set)) cores.push_back(core);
  }
  return cores;
}

std::vector<int> share_of_cores(const std::vector<int>& cores, size_t slot, size_t slots) {
  const size_t n = cores.size();
  if (n == 0) return {};
  if (slots >= n) return {cores[slot % n]};
  const auto at = [&](size_t i) { return cores.begin() + static_cast<std::ptrdiff_t>(i * n / slots); };
  return {at(slot), at(slot + 1)};
}

}  // namespace conclave::sweep
