// SPDX-License-Identifier: Apache-2.0
// What happened to one run of a sweep: a line of JSON for each start and each end. Written by whoever conducts the
// sweep, read by anyone; a line that a kill cut short is passed over.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>

namespace conclave::sweep {

// How a process ended.
struct Ending {
  int code = 0;      // exit code; 128 + signal where a signal ended it
  int signal = 0;    // 0 = none
  std::string tail;  // the last of what it said on standard error

  // Not when it came to its end, or saved to go on later.
  bool failed() const;
};

struct History {
  int64_t starts = 0;
  pid_t process = 0;             // of the last start, 0 = never started
  int64_t ticks = 0;             // when it started, by the clock of /proc
  std::optional<Ending> ending;  // of the last start; none: it runs, or whoever watched it was killed
};

void record_start(const std::filesystem::path& journal, pid_t process, int64_t ticks);
void record_end(const std::filesystem::path& journal, const Ending& ending);
// An absent file is an empty history.
History read_history(const std::filesystem::path& journal);

}  // namespace conclave::sweep
