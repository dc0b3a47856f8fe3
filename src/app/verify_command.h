// SPDX-License-Identifier: Apache-2.0
// `conclave verify`: whether the layouts of a model give what one rank gives, on threads of this process or under
// mpirun.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

// Registers the sub-command; when it is chosen, `run` becomes what executes it and returns the exit code.
void add_verify_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
