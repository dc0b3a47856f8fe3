// SPDX-License-Identifier: Apache-2.0
#include "app/config_options.h"

#include <fmt/format.h>

#include "config/suggest.h"

namespace conclave::app {
namespace {

using Kind = config::Override::Kind;

void add_override(CLI::App& command, ConfigOptions& options, const std::string& name, Kind kind,
                  const std::string& text) {
  // Run at each occurrence, so that --set and --unset keep their common order.
  command
      .add_option_function<std::string>(
          name,
          [&options, kind](const std::string& value) {
            options.overrides.push_back({kind, value});
          },
          text)
      ->trigger_on_parse()
      ->type_name(kind == Kind::kSet       ? "PATH=VALUE"
                  : kind == Kind::kSetFile ? "PATH=FILE"
                                           : "PATH");
}

}  // namespace

void add_config_options(CLI::App& command, ConfigOptions& options) {
  command.add_option("CONFIG", options.file, "configuration, YAML")->required();
  add_override(command, options, "--set", Kind::kSet, "sets one value; repeatable, applied in order");
  add_override(command, options, "--set-file", Kind::kSetFile, "sets one value to the content of a YAML file");
  add_override(command, options, "--unset", Kind::kUnset, "takes one key out, back to its default");
}

std::string explain_argument(const std::string& word, const std::vector<std::string>& known) {
  const std::string bare = word.substr(0, word.find('='));
  if (bare.starts_with("--")) {
    if (const std::string key = config::known_elsewhere_as(bare); !key.empty()) {
      return fmt::format("{} is {} here; in the YAML, or as --set path=value", bare, key);
    }
  }
  const std::string near = config::nearest(bare, known);
  return near.empty() ? "" : fmt::format("did you mean {}?", near);
}

}  // namespace conclave::app
