// SPDX-License-Identifier: Apache-2.0
// `conclave eval`: validation loss of a run per source, beside what counting alone would reach, and which experts each
// source uses.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

void add_eval_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
