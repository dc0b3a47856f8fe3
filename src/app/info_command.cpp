// SPDX-License-Identifier: Apache-2.0
#include "app/info_command.h"

#include <fmt/format.h>

#include <memory>

#include "app/config_options.h"
#include "app/info_report.h"
#include "train/run_config.h"

namespace conclave::app {
namespace {

struct InfoOptions {
  ConfigOptions config;
  int64_t ranks = 0;  // 0 = as many as the configuration needs at least
};

}  // namespace

void add_info_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<InfoOptions>();
  auto* command = app.add_subcommand("info", "parameters, FLOPs per token and bytes per rank of a configuration");
  add_config_options(*command, options->config);
  command->add_option("-n,--ranks", options->ranks, "ranks to spread the model over");
  command->footer(
      "Example: what Mixtral-8x7B takes on 8 ranks with the experts spread over all of them\n"
      "  conclave info configs/presets/mixtral-8x7b.yaml -n 8 --set parallel.ep=8");
  command->callback([options, &run] {
    run = [options] {
      const auto loaded = train::load_config(options->config.file, options->config.overrides,
                                             {options->ranks, train::Purpose::kInfo, false});
      for (const std::string& warning : loaded.warnings) fmt::print(stderr, "warning: {}\n", warning);
      fmt::print("{}", info_report(loaded.config, train::world_size(loaded.config)));
      return 0;
    };
  });
}

}  // namespace conclave::app
