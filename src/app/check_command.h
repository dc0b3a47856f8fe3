// SPDX-License-Identifier: Apache-2.0
// `conclave check`: everything that can be wrong with a run before anything is allocated. It starts no ranks and reads
// no token; it looks whether the token files are there.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "app/config_options.h"

namespace conclave::app {

struct CheckOptions {
  ConfigOptions config;
  int64_t ranks = 0;  // 0 = as many as the configuration needs at least
};

// The report: layout, resolved expert numbers, batch, memory, warnings. Throws ConfigError with all problems.
std::string check_report(const CheckOptions& options);

// Registers the sub-command; when it is chosen, `run` becomes what executes it and returns the exit code.
void add_check_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
