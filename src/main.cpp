// SPDX-License-Identifier: Apache-2.0
// Reads the command line and runs one command; the only place that catches errors outside a world of ranks.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <sstream>

#include "app/bench_command.h"
#include "app/check_command.h"
#include "app/config_command.h"
#include "app/data_command.h"
#include "app/doctor_command.h"
#include "app/eval_command.h"
#include "app/info_command.h"
#include "app/methods_command.h"
#include "app/sample_command.h"
#include "app/sweep_command.h"
#include "app/train_command.h"
#include "app/verify_command.h"
#include "app/version.h"
#include "comm/failure.h"
#include "comm/world.h"
#include "core/error.h"

namespace {

std::string usage_error(const CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  std::ostringstream text;
  app.exit(error, text, text);
  std::vector<std::string> commands;
  for (const auto* command : app.get_subcommands(nullptr)) commands.push_back(command->get_name());
  for (int i = 1; i < argc; ++i) {
    const auto hint = conclave::app::explain_argument(argv[i], commands);
    if (!hint.empty()) text << hint << '\n';
  }
  return text.str().substr(0, text.str().find_last_not_of('\n') + 1);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace conclave;
  CLI::App app("Conclave: pretraining of mixture-of-experts transformers over MPI", "conclave");
  app.set_version_flag("--version", app::kVersion);
  app.require_subcommand(1);
  app.footer(
      "Example: what a configuration will do, then the run itself\n"
      "  conclave check configs/tiny.yaml -n 2\n  launch/run 2 configs/tiny.yaml");
  std::function<int()> run;
  app::add_train_command(app, run);
  app::add_check_command(app, run);
  app::add_config_command(app, run);
  app::add_info_command(app, run);
  app::add_methods_command(app, run);
  app::add_data_command(app, run);
  app::add_sweep_command(app, run);
  app::add_eval_command(app, run);
  app::add_sample_command(app, run);
  app::add_verify_command(app, run);
  app::add_bench_command(app, run);
  app::add_doctor_command(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    // In the world of ranks, so that the mistake is reported once and not by every rank.
    const auto text = usage_error(app, error, argc, argv);
    return comm::run_world([&](comm::World&) -> int { throw UsageError("{}", text); });
  }
  try {
    return run();
  } catch (...) {
    const auto failure = comm::failure_of(std::current_exception());
    fmt::print(stderr, "{}\n", failure.message);
    return failure.code;
  }
}
