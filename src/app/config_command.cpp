// SPDX-License-Identifier: Apache-2.0
#include "app/config_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "app/generated_page.h"
#include "config/fields.h"
#include "config/yaml.h"
#include "core/error.h"
#include "train/run_config.h"

namespace conclave::app {
namespace {

using config::Entry;
using config::Node;

bool equal(const Node& a, const Node& b) {
  return a.kind == b.kind && a.text == b.text &&
         std::equal(a.list.begin(), a.list.end(), b.list.begin(), b.list.end(), equal) &&
         std::equal(a.map.begin(), a.map.end(), b.map.begin(), b.map.end(),
                    [](const Entry& x, const Entry& y) { return x.key == y.key && equal(x.value, y.value); });
}

// Leaves of `node` that differ from `defaults`; lists are compared as a whole.
Node differences(const Node& node, const Node& defaults) {
  Node result;
  result.kind = Node::Kind::kMap;
  for (const Entry& entry : node.map) {
    const Node* standard = defaults.get(entry.key);
    if (standard != nullptr && entry.value.is_map() && standard->is_map()) {
      Node below = differences(entry.value, *standard);
      if (!below.map.empty()) result.map.push_back({entry.key, {}, std::move(below)});
    } else if (standard == nullptr || !equal(entry.value, *standard)) {
      result.map.push_back(entry);
    }
  }
  return result;
}

// Gives every value of `node` the origin of what was written for it; what was derived or left out stays "default".
void copy_origins(Node& node, const Node* written) {
  if (written != nullptr) node.origin = written->origin;
  for (size_t i = 0; i < node.list.size(); ++i) {
    const bool known = written != nullptr && i < written->list.size();
    copy_origins(node.list[i], known ? &written->list[i] : nullptr);
  }
  for (Entry& entry : node.map) copy_origins(entry.value, written == nullptr ? nullptr : written->get(entry.key));
}

}  // namespace

std::string show_config(const ConfigOptions& options, ConfigView view) {
  // Shown for reading, not for training: no data is needed and unbuilt features are only warned of.
  const auto loaded = train::load_config(options.file, options.overrides, {0, train::Purpose::kInfo, false});
  if (view == ConfigView::kWritten) return config::write_yaml(loaded.document);
  Node node = config::to_node(loaded.config);
  if (view == ConfigView::kDiffDefaults) node = differences(node, config::to_node(train::RunConfig()));
  if (view == ConfigView::kOrigins) copy_origins(node, &loaded.document);
  return config::write_yaml(node, view == ConfigView::kOrigins);
}

void add_config_command(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("config", "show a configuration as understood; schema and reference of all keys");
  command->require_subcommand(1);
  command->footer("Example: conclave config show configs/tiny.yaml --origins --set optim.lr=1e-4");

  auto* show = command->add_subcommand("show", "the configuration with includes, overrides and references applied");
  const auto options = std::make_shared<ConfigOptions>();
  const auto view = std::make_shared<ConfigView>(ConfigView::kWritten);
  add_config_options(*show, *options);
  auto* views = show->add_option_group("views", "at most one of");
  views->require_option(0, 1);
  views->add_flag_callback(
      "--resolved", [view] { *view = ConfigView::kResolved; }, "every key with its final value");
  views->add_flag_callback(
      "--diff-defaults", [view] { *view = ConfigView::kDiffDefaults; }, "only what differs from the defaults");
  views->add_flag_callback(
      "--origins", [view] { *view = ConfigView::kOrigins; }, "every value with the place it comes from");
  show->footer("Example: conclave config show configs/tiny.yaml --diff-defaults");
  show->callback([options, view, &run] {
    run = [options, view] {
      fmt::print("{}", show_config(*options, *view));
      return 0;
    };
  });

  auto* schema = command->add_subcommand("schema", "JSON Schema (2020-12) for editors");
  schema->footer("Example: conclave config schema > conclave.schema.json");
  schema->callback([&run] {
    run = [] {
      fmt::print("{}\n", config::json_schema(train::run_schema()).dump(2));
      return 0;
    };
  });

  auto* docs = command->add_subcommand("docs", "Markdown tables of all keys, as in docs/configuration.md");
  const auto page = std::make_shared<std::string>();
  docs->add_option("--write", *page, "renew the tables between the markers of this page")->type_name("PAGE");
  docs->footer("Example: conclave config docs --write docs/configuration.md");
  docs->callback([page, &run] {
    run = [page] {
      if (page->empty()) {
        fmt::print("{}", config::docs_tables(train::run_schema()));
      } else {
        renew_page(*page, "conclave config docs", config::docs_tables(train::run_schema()));
      }
      return 0;
    };
  });
}

}  // namespace conclave::app
