// SPDX-License-Identifier: Apache-2.0
// `conclave data tokenize | train-tokenizer | inspect`: from text to token files, before any training. Runs in one
// process on threads, never under mpirun.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace conclave::app {

// Adds `data` with its subcommands to `app`. When one is parsed, `run` becomes what executes it and gives the exit
// code.
void add_data_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
