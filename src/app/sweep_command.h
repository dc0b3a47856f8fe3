// SPDX-License-Identifier: Apache-2.0
// `conclave sweep`: many runs from one file, planned before the first starts, conducted on this machine or written out
// for a queue, and compared.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

// Registers the sub-command; when one of its verbs is chosen, `run` becomes what executes it and returns the exit code.
void add_sweep_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
