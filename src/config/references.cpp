// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cstdlib>
#include <unordered_map>

#include "config/document.h"
#include "config/suggest.h"
#include "config/yaml.h"

namespace conclave::config {
namespace {

constexpr int kMaxChain = 16;              // a reference to a reference to ...
constexpr size_t kMaxExpanded = 64 << 10;  // bytes that references may add, so that doubling chains stay harmless

bool is_variable_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  return !name.empty() && !(name[0] >= '0' && name[0] <= '9') && std::all_of(name.begin(), name.end(), allowed);
}

// Replaces ${env:NAME}, ${env:NAME:-default} and ${section.key} in the scalars of a tree. "$${" stands for "${".
class Expander {
 public:
  Expander(Node& root, const Schema& schema, Problems& problems) : root_(root), schema_(schema), problems_(problems) {}

  void expand_all(Node& node) {
    for (Node& item : node.list) expand_all(item);
    for (Entry& entry : node.map) expand_all(entry.value);
    if (node.is_scalar()) expand(node, 0);
  }

 private:
  enum class State { kOpen, kDone };

  void expand(Node& node, int depth) {
    const auto [state, fresh] = states_.try_emplace(&node, State::kOpen);
    if (!fresh && state->second == State::kDone) return;
    if (!fresh) return refuse(node, "refers to itself");
    if (node.text.find("${") == std::string::npos) {
      states_[&node] = State::kDone;
      return;
    }
    if (depth > kMaxChain) return refuse(node, fmt::format("a chain of more than {} references", kMaxChain));
    std::string result;
    const size_t before = problems_.count();
    replace(node, depth, result);
    states_[&node] = State::kDone;
    if (problems_.count() != before) return;
    expanded_ += result.size();
    if (expanded_ > kMaxExpanded) {
      problems_.fail(node.origin, "", fmt::format("references expand to more than {} KiB", kMaxExpanded >> 10));
    }
    node.text = std::move(result);
  }

  void replace(Node& node, int depth, std::string& result) {
    const std::string text = node.text;
    for (size_t i = 0; i < text.size();) {
      if (text.compare(i, 3, "$${") == 0) {
        result += "${";
        i += 3;
        continue;
      }
      if (text.compare(i, 2, "${") != 0) {
        result += text[i++];
        continue;
      }
      const size_t end = text.find('}', i);
      if (end == std::string::npos) return refuse(node, "'${' without '}'; a literal '${' is written '$${'");
      const std::string inner = text.substr(i + 2, end - i - 2);
      result += inner.starts_with("env:") ? environment(node, inner) : key(node, inner, depth);
      node.quoted = false;  // the type of what was inserted follows from the key, as for a plain scalar
      i = end + 1;
    }
  }

  std::string environment(Node& node, const std::string& inner) {
    const size_t fallback = inner.find(":-");
    const std::string name = inner.substr(4, fallback == std::string::npos ? fallback : fallback - 4);
    if (!is_variable_name(name)) {
      refuse(node, fmt::format("'{}' is no name of an environment variable", name));
      return {};
    }
    node.origin.via = "environment " + name;
    const char* value = std::getenv(name.c_str());
    if (value == nullptr || (*value == '\0' && fallback != std::string::npos)) {
      if (fallback != std::string::npos) {
        node.origin.via += ", not set";
        return inner.substr(fallback + 2);
      }
      refuse(node,
             fmt::format("the environment variable {} is not set; set it or write ${{env:{}:-default}}", name, name));
      return {};
    }
    if (find_bad_byte(value) != std::string_view::npos) {
      refuse(node, fmt::format("the environment variable {} does not hold text", name));
      return {};
    }
    return value;
  }

  std::string key(Node& node, const std::string& path, int depth) {
    node.origin.via = "from " + path;
    if (const Node* target = find(std::as_const(root_), path)) {
      expand(const_cast<Node&>(*target), depth + 1);
      if (target->is_scalar()) return target->text;
      refuse(node, fmt::format("{} is {}; only single values can be referred to", path, describe_found(*target)));
      return {};
    }
    const Schema* known = find(schema_, path);
    if (known != nullptr && known->default_value.is_scalar() && !known->rule.required) return known->default_value.text;
    const std::vector<std::string> paths = leaf_paths(schema_);
    refuse(node, known == nullptr
                     ? fmt::format("there is no key {}{}; ${{env:NAME}} names an environment variable", path,
                                   did_you_mean(path, paths))
                     : fmt::format("{} is not written in the configuration and its default is derived", path));
    return {};
  }

  void refuse(const Node& node, const std::string& message) {
    states_[&node] = State::kDone;
    problems_.add(node.origin, "", fmt::format("{}: {}", node.text.substr(0, 60), message));
  }

  Node& root_;
  const Schema& schema_;
  Problems& problems_;
  std::unordered_map<const Node*, State> states_;
  size_t expanded_ = 0;
};

}  // namespace

void expand_references(Node& root, const Schema& schema, Problems& problems) {
  Expander(root, schema, problems).expand_all(root);
}

}  // namespace conclave::config
