// SPDX-License-Identifier: Apache-2.0
#include "app/info_command.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "app/info_report.h"

namespace conclave::train {
RunConfig load_config(const std::filesystem::path& path, const std::vector<std::string>& overrides);
}

namespace conclave::app {
namespace {

struct InfoOptions {
  std::string config;
  std::vector<std::string> overrides;
  int64_t ranks = 1;
};

}  // namespace

void add_info_command(CLI::App& app, std::function<int()>& run) {
  const auto options = std::make_shared<InfoOptions>();
  auto* command = app.add_subcommand("info", "parameters, FLOPs per token and bytes per rank of a configuration");
  command->add_option("CONFIG", options->config, "YAML file")->required();
  command->add_option("--set", options->overrides, "override one key: path=value")->allow_extra_args(false);
  command->add_option("-n,--ranks", options->ranks, "ranks to spread the model over")->capture_default_str();
  command->footer(
      "Example: what Mixtral-8x7B takes on 8 ranks with the experts spread over all of them\n"
      "  conclave info configs/presets/mixtral-8x7b.yaml -n 8 --set parallel.ep=8");
  command->callback([options, &run] {
    run = [options] {
      fmt::print("{}", info_report(train::load_config(options->config, options->overrides), options->ranks));
      return 0;
    };
  });
}

}  // namespace conclave::app
