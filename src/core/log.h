// SPDX-License-Identifier: Apache-2.0
// One logger per rank, made in main (or in a test) and passed by reference to the few objects that log.
// Rank 0 writes to the console; every rank writes to its file once a run directory is known.
#pragma once

#include <spdlog/logger.h>

#include <filesystem>
#include <memory>

namespace conclave {

using Log = spdlog::logger;

// A logger for `rank`. Only rank 0 gets a console sink; the others stay silent until add_file.
std::shared_ptr<Log> make_log(int rank);
// A logger that drops everything, for tests.
std::shared_ptr<Log> make_silent_log();
// Adds `<directory>/rank-NNNNN.log` to the sinks; creates the directory.
void add_log_file(Log& log, const std::filesystem::path& directory, int rank);

}  // namespace conclave
