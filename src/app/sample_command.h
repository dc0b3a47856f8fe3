// SPDX-License-Identifier: Apache-2.0
// `conclave sample`: text that a run's model continues a prompt with.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

void add_sample_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
