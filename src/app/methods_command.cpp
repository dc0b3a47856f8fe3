// SPDX-License-Identifier: Apache-2.0
#include "app/methods_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "app/generated_page.h"
#include "config/fields.h"
#include "config/schema.h"
#include "core/error.h"
#include "moe/balance_loss.h"
#include "moe/capacity.h"
#include "moe/causality.h"
#include "moe/compression.h"
#include "moe/router.h"
#include "train/run_config.h"

namespace conclave::app {
namespace {

struct Method {
  moe::MethodInfo info;
  std::string options;                      // path of the section of its own keys, where it has one
  std::vector<std::string_view> keys = {};  // of the section above that, those that mean something to it
};

struct Kind {
  std::string_view title, key;
  bool classes = true;  // whether a causality class means anything: a loss chooses nothing
  std::vector<Method> methods = {};
};

std::vector<Kind> kinds() {
  Kind routers{"Routers", "moe.router.type"}, losses{"Balancing losses", "moe.balance.losses[].type", false},
      policies{"Who is admitted to a full expert", "moe.capacity.policy"},
      compressions{"Rows that travel as one", "moe.dispatch.compression.type"};
  for (const auto& row : moe::Router::table())
    routers.methods.push_back({row.info, fmt::format("moe.router.{}", row.info.type)});
  for (const auto& row : moe::AuxiliaryLoss::table()) {
    const std::string_view type = config::enum_name(row.type);
    losses.methods.push_back({{.type = type, .what = row.what, .source = row.source, .equation = row.equation},
                              fmt::format("moe.balance.losses[].{}", type),
                              row.keys});
  }
  for (const auto& row : moe::Admission::table())
    policies.methods.push_back({row.info, fmt::format("moe.capacity.{}", row.info.type)});
  for (const auto& row : moe::Compressor::table())
    compressions.methods.push_back({row.info, "moe.dispatch.compression"});
  return {routers, losses, policies, compressions};
}

std::string_view meaning_of(moe::Causality causality) {
  constexpr std::string_view kMeanings[] = {"depends on the token itself", "depends on the token and those before it",
                                            "depends on earlier steps, too",
                                            "depends on later tokens, too: the training loss is optimistic"};
  return kMeanings[static_cast<int>(causality)];
}

// Keys of the section at `path`; of those `wanted` all, where that is not empty.
std::string keys_text(const std::string& path, const std::vector<std::string_view>& wanted) {
  const config::Schema schema = train::run_schema();
  std::string first = path;  // of a list: of its first item
  if (const size_t at = first.find("[]"); at != std::string::npos) first.insert(at + 1, "0");
  const config::Schema* section = config::find(schema, first);
  while (section != nullptr && section->type == config::Schema::Type::kList) section = &section->children.at(0);
  if (section == nullptr) return {};
  std::string text;
  for (const auto& child : section->children)
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), child.key) != wanted.end())
      text += fmt::format("    {:<18} {}\n", child.key, child.doc);
  return text;
}

std::string options_text(const Method& method) {
  const std::string above = method.options.substr(0, method.options.rfind('.')),
                    shared = method.keys.empty() ? "" : keys_text(above, method.keys),
                    own = keys_text(method.options, {});
  return (shared.empty() ? "" : fmt::format("  keys in {}:\n{}", above, shared)) +
         (own.empty() ? "" : fmt::format("  keys of its own, below {}:\n{}", method.options, own));
}

std::string text_of(const Kind& kind, const Method& method) {
  const auto& info = method.info;
  std::string text = fmt::format("{}: {}\n", kind.key, info.type);
  const auto line = [&](std::string_view name, std::string_view value) {
    if (!value.empty()) text += fmt::format("  {:<12} {}\n", name, value);
  };
  line("what", info.what);
  line("source", info.source);
  line("equation", info.equation);
  if (kind.classes) {
    line("training", fmt::format("{}: {}", name_of(info.causality), meaning_of(info.causality)));
    for (const auto& option : moe::classes_of_options())
      if (option.type == info.type)
        line("", fmt::format("with {} {}: {}", option.option, name_of(option.causality), meaning_of(option.causality)));
    line("evaluation", info.evaluation);
  }
  line("exports", info.exports);
  return text + options_text(method);
}

}  // namespace

std::string methods_list() {
  std::string text;
  for (const Kind& kind : kinds()) {
    text += fmt::format("{}{} ({})\n", text.empty() ? "" : "\n", kind.title, kind.key);
    for (const auto& [info, options, keys] : kind.methods)
      text += fmt::format("  {:<14} {:<3} {}\n", info.type, kind.classes ? name_of(info.causality) : "", info.what);
  }
  return text +
         "\nC0 to C3: what routing in training depends on; `conclave methods show NAME` says it, with source and "
         "keys.\n";
}

std::string methods_tables() {
  std::string text;
  for (const Kind& kind : kinds()) {
    const std::string_view class_head = kind.classes ? " training | evaluation |" : "";
    text += fmt::format("### {}\n\n| `{}` | what | equation |{} source |\n|---|---|---|{}---|\n", kind.title, kind.key,
                        class_head, kind.classes ? "---|---|" : "");
    for (const auto& [info, options, keys] : kind.methods) {
      const std::string classes = kind.classes ? fmt::format(" {} | {} |", moe::class_text(info), info.evaluation) : "";
      text += fmt::format("| `{}` | {} | {} |{} {} |\n", info.type, info.what, info.equation, classes, info.source);
    }
    text += "\n";
  }
  return text;
}

std::string method_text(std::string_view name) {
  std::string text, known;
  for (const Kind& kind : kinds()) {
    for (const Method& method : kind.methods) {
      known += fmt::format("{}{}", known.empty() ? "" : ", ", method.info.type);
      if (method.info.type == name) text += (text.empty() ? "" : "\n") + text_of(kind, method);
    }
  }
  if (text.empty()) throw UsageError("there is no method {}\n  There are {}.", name, known);
  return text;
}

void add_methods_command(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("methods", "routers, balancing losses, capacity policies and compressions");
  command->require_subcommand(1);
  command->footer("Example: conclave methods show expert_choice");
  auto* list = command->add_subcommand("list", "all of them, one line each");
  list->footer("Example: conclave methods list");
  list->callback([&run] {
    run = [] {
      fmt::print("{}", methods_list());
      return 0;
    };
  });
  auto* show = command->add_subcommand("show", "what a method computes, where it comes from, which keys it has");
  const auto name = std::make_shared<std::string>();
  show->add_option("NAME", *name, "as in the configuration")->required();
  show->footer("Example: conclave methods show relu");
  show->callback([name, &run] {
    run = [name] {
      fmt::print("{}", method_text(*name));
      return 0;
    };
  });
  auto* docs = command->add_subcommand("docs", "the list as Markdown tables, as in docs/methods.md");
  const auto page = std::make_shared<std::string>();
  docs->add_option("--write", *page, "renew the tables between the markers of this page")->type_name("PAGE");
  docs->footer("Example: conclave methods docs --write docs/methods.md");
  docs->callback([page, &run] {
    run = [page] {
      if (page->empty())
        fmt::print("{}", methods_tables());
      else
        renew_page(*page, "conclave methods docs", methods_tables());
      return 0;
    };
  });
}

}  // namespace conclave::app
