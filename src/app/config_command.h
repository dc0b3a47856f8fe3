// SPDX-License-Identifier: Apache-2.0
// `conclave config show|schema|docs`: the configuration as it was understood, and what may be written in one.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "app/config_options.h"

namespace conclave::app {

enum class ConfigView {
  kWritten,       // the keys that were written, includes merged, references replaced
  kResolved,      // every key with its final value
  kDiffDefaults,  // resolved keys that differ from their defaults
  kOrigins,       // resolved, each value with the place it comes from
};

// YAML of one view. Throws ConfigError when the configuration has problems.
std::string show_config(const ConfigOptions& options, ConfigView view);

// Registers the sub-command; when it is chosen, `run` becomes what executes it and returns the exit code.
void add_config_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
