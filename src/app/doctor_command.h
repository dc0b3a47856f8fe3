// SPDX-License-Identifier: Apache-2.0
// `conclave doctor`: what the hosts of a job are like, how fast they reach each other, and which one is not like the
// others.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

// Registers the sub-command; when it is chosen, `run` becomes what executes it and returns the exit code.
void add_doctor_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
