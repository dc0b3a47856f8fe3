// SPDX-License-Identifier: Apache-2.0
// `conclave bench`: the machine's GEMM ceiling and the training step against it.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace conclave::app {

void add_bench_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
