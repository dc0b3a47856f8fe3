// SPDX-License-Identifier: Apache-2.0
// `conclave methods`: which routers, balancing losses and capacity policies there are, read from the tables that the
// layer itself is built from, with their sources, causality classes and keys.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <string_view>

namespace conclave::app {

// All methods, one line each, for a terminal.
std::string methods_list();
// The same as Markdown tables.
std::string methods_tables();
// Everything about the methods of this name. Throws UsageError for an unknown one.
std::string method_text(std::string_view name);

void add_methods_command(CLI::App& app, std::function<int()>& run);

}  // namespace conclave::app
