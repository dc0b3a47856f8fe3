// SPDX-License-Identifier: Apache-2.0
// `conclave info`: what a configuration amounts to in parameters, FLOPs and bytes. It builds nothing and reads no data;
// the text itself comes from info_report.h.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

// Registers the sub-command; when it is chosen, `run` becomes the function that executes it and returns the exit
// status.
void add_info_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
