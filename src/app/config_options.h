// SPDX-License-Identifier: Apache-2.0
// The arguments that every command reading a configuration shares: CONFIG, --set, --set-file and --unset.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "train/run_config.h"

namespace conclave::app {

struct ConfigOptions {
  std::string file;
  std::vector<config::Override> overrides;  // in the order of the command line, whatever their kind
};

// Adds them to `command`; `options` must outlive the parsing.
void add_config_options(CLI::App& command, ConfigOptions& options);

// The configuration for commands that make up their tokens: it need not name any data, and none is looked for.
train::RunConfig load_without_data(const ConfigOptions& options, int64_t ranks);

// What to say about a word of the command line that no option or command takes, "--micro-batch-size": the key it stands
// for or the nearest of `known`. Empty when there is nothing to say.
std::string explain_argument(const std::string& word, const std::vector<std::string>& known);

}  // namespace conclave::app
