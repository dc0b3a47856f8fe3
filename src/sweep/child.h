// SPDX-License-Identifier: Apache-2.0
// One process of a sweep: started with its own session, cores and log files, and killed by the kernel when the process
// that started it is gone. Linux only.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <vector>

namespace conclave::sweep {

struct ChildOptions {
  std::vector<std::string> command;  // the program's path first
  std::vector<int> cores;            // where it may run, and how many threads it starts; empty = as its parent
  std::filesystem::path out, err;    // appended to
};

// Starts it with no signal blocked. Must be called from the thread that lives as long as the process: the kernel ties
// the child's life to the thread that forked. Throws IoError when it cannot be started; a program that cannot be
// executed ends with exit code 127.
pid_t start_child(const ChildOptions& options);

// When a process started, in clock ticks since boot; 0 when there is none. Number and ticks together name a process
// for ever.
int64_t start_ticks(pid_t process);

// Kills the session that `process` leads, if it is still the one that started at `ticks`, and waits until it is gone.
// Throws OwnedError when it does not go.
void kill_session(pid_t process, int64_t ticks);

// The cores this process may run on, and what the `slot`-th of `slots` gets of them: at least one.
std::vector<int> usable_cores();
std::vector<int> share_of_cores(const std::vector<int>& cores, size_t slot, size_t slots);

}  // namespace conclave::sweep
