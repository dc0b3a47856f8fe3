// SPDX-License-Identifier: Apache-2.0
#include "sweep/sweep_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/document.h"
#include "config/fields.h"
#include "config/yaml.h"

namespace conclave::sweep {
namespace {

using config::Node;
using config::Schema;

Schema free_part(const std::string& key, const std::string& doc) {
  Schema schema;
  schema.key = key;
  schema.doc = doc;
  return schema;
}

// Takes the value of `key` out of the document, which leaves it to the strict reader.
Node take(Node& root, const std::string& key) {
  const Node* found = root.get(key);
  Node value = found == nullptr ? Node{} : *found;
  root.erase(key);
  return value;
}

void expect(bool holds, const Node& node, const std::string& key, const std::string& wanted,
            config::Problems& problems) {
  if (!holds && !node.is_null()) {
    problems.add(node.origin, key, fmt::format("expected {}, found {}", wanted, config::describe_found(node)));
  }
}

void expect_maps(Node& list, const std::string& key, const std::string& wanted, config::Problems& problems) {
  expect(list.is_list(), list, key, wanted, problems);
  for (const Node& item : list.list) expect(item.is_map(), item, key, wanted, problems);
  std::erase_if(list.list, [](const Node& item) { return !item.is_map(); });
}

bool is_plain_name(const std::string& name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
  return plain && !name.empty() && name[0] != '.';
}

void check_values(Sweep& sweep, const config::Node& root, config::Problems& problems) {
  SweepConfig& config = sweep.config;
  if (config.name.empty()) config.name = sweep.file.stem().string();
  if (!is_plain_name(config.name)) {
    problems.add(config::origin_of(root, "name"), "name",
                 fmt::format("'{}' names a folder; use letters, digits, '-', '_' and '.'", config.name));
  }
  std::vector<int64_t> seeds;
  for (size_t i = 0; i < config.seeds.size(); ++i) {
    const bool twice = std::find(seeds.begin(), seeds.end(), config.seeds[i]) != seeds.end();
    if (!twice) seeds.push_back(config.seeds[i]);
    if (!twice) continue;
    const auto key = fmt::format("seeds[{}]", i);
    problems.add(config::origin_of(root, key), key, fmt::format("seed {} is given twice", config.seeds[i]));
  }
  config.seeds = seeds;
  if (config.match.flops && config.match.tokens) {
    problems.add(config::origin_of(root, "match.tokens"), "match.tokens",
                 "flops and tokens both decide the number of steps; keep one of them");
  }
}

}  // namespace

const Schema& sweep_schema() {
  static const Schema schema = [] {
    Schema described = config::describe<SweepConfig>();
    described.children.push_back(free_part("axes", "path: [value, ...]; every combination is run"));
    described.children.push_back(free_part("zip", "maps of such lists; the lists of one map move together"));
    described.children.push_back(free_part("exclude", "{path: value} maps; combinations that agree are left out"));
    described.children.push_back(free_part("baseline", "{path: value}; what the others are compared with"));
    return described;
  }();
  return schema;
}

Sweep load_sweep(const std::filesystem::path& file, config::Problems& problems) {
  Sweep sweep;
  sweep.file = file;
  const auto source = config::read_source(file, file.string());
  sweep.text = source->text;
  Node root = config::parse_yaml(source, problems);
  if (!root.is_map()) problems.fail(root.origin, "", "a sweep is a section with base:, axes: and so on");
  sweep.document = root;
  sweep.axes = take(root, "axes");
  sweep.zip = take(root, "zip");
  sweep.exclude = take(root, "exclude");
  sweep.baseline = take(root, "baseline");
  expect(sweep.axes.is_map(), sweep.axes, "axes", "a section such as {optim.lr: [1e-3, 3e-3]}", problems);
  expect(sweep.baseline.is_map(), sweep.baseline, "baseline", "a section such as {optim.lr: 1e-3}", problems);
  expect_maps(sweep.zip, "zip", "a list of sections such as [{optim.lr: [1e-3, 3e-3], train.steps: [100, 50]}]",
              problems);
  expect_maps(sweep.exclude, "exclude", "a list of sections such as [{optim.lr: 1e-3}]", problems);
  config::Reader(sweep_schema(), problems).read(root, sweep.config, "");
  check_values(sweep, root, problems);
  return sweep;
}

}  // namespace conclave::sweep
