// SPDX-License-Identifier: Apache-2.0
// Errors of two kinds: what a user or the environment can mend (one type per exit code) and bugs of ours (`check`).
// Libraries throw; only main catches, prints and ends the process.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace conclave {

// Process exit codes; documented in docs/configuration.md.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 64,
  kData = 65,
  kBug = 70,
  kOwned = 73,  // the run directory belongs to another live run
  kIo = 74,
  kRequeue = 75,  // state saved, start me again
  kPeerLost = 76,
  kConfig = 78,
  kHang = 80,
  kNumeric = 81,
  kNoCheckpoint = 82,  // checkpoints exist, none is valid
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

template <ExitCode kCode>
class ErrorOf : public Error {
 public:
  // The message says what, where, why and what to do.
  template <typename... Args>
  explicit ErrorOf(fmt::format_string<Args...> format, Args&&... args)
      : Error(kCode, fmt::format(format, std::forward<Args>(args)...)) {}
};

using UsageError = ErrorOf<ExitCode::kUsage>;
using DataError = ErrorOf<ExitCode::kData>;
using OwnedError = ErrorOf<ExitCode::kOwned>;
using IoError = ErrorOf<ExitCode::kIo>;
using CommError = ErrorOf<ExitCode::kPeerLost>;
using ConfigError = ErrorOf<ExitCode::kConfig>;
using NumericError = ErrorOf<ExitCode::kNumeric>;
using NoCheckpointError = ErrorOf<ExitCode::kNoCheckpoint>;
using BugError = ErrorOf<ExitCode::kBug>;

// A condition that only a bug of ours can break.
inline void check(bool condition, const char* what, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!condition) throw BugError("internal error: {} ({}:{})", what, file, line);
}

}  // namespace conclave
