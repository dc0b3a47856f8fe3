// SPDX-License-Identifier: Apache-2.0
// `conclave train`: alone or under mpirun.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

// Registers the sub-command; when it is chosen, `run` becomes what executes it and returns the exit code.
void add_train_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
