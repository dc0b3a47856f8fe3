// SPDX-License-Identifier: Apache-2.0
#include "app/config_options.h"

#include <fmt/format.h>

#include <algorithm>

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

// The key that a flag such as --micro-batch-size stands for, by our name or that of another stack.
std::string keys_for_flag(std::string flag) {
  if (std::string key = config::known_elsewhere_as(flag); !key.empty()) return key;
  flag.erase(0, flag.find_first_not_of('-'));
  std::replace(flag.begin(), flag.end(), '-', '_');
  std::string keys;
  for (const std::string& path : config::leaf_paths(train::run_schema())) {
    if (path.substr(path.find_last_of('.') + 1) == flag) keys += (keys.empty() ? "" : " or ") + path;
  }
  return keys;
}

}  // namespace

void add_config_options(CLI::App& command, ConfigOptions& options) {
  command.add_option("CONFIG", options.file, "configuration, YAML")->required();
  add_override(command, options, "--set", Kind::kSet, "sets one value; repeatable, applied in order");
  add_override(command, options, "--set-file", Kind::kSetFile, "sets one value to the content of a YAML file");
  add_override(command, options, "--unset", Kind::kUnset, "takes one key out, back to its default");
}

train::RunConfig load_without_data(const ConfigOptions& options, int64_t ranks) {
  auto overrides = options.overrides;
  overrides.push_back({Kind::kSet, "data.train=[{name: random, path: random}]"});
  overrides.push_back({Kind::kUnset, "data.valid"});
  overrides.push_back({Kind::kUnset, "train.distill"});
  return train::load_config(options.file, overrides, {ranks, train::Purpose::kTrain, false}).config;
}

std::string explain_argument(const std::string& word, const std::vector<std::string>& known) {
  const std::string bare = word.substr(0, word.find('='));
  if (bare.starts_with("--")) {
    if (const std::string keys = keys_for_flag(bare); !keys.empty()) {
      return fmt::format("{} is {} here; in the YAML, or as --set path=value", bare, keys);
    }
  }
  if (std::find(known.begin(), known.end(), bare) != known.end()) return "";
  const std::string near = config::nearest(bare, known);
  return near.empty() ? "" : fmt::format("did you mean {}?", near);
}

}  // namespace conclave::app
