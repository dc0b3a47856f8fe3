// SPDX-License-Identifier: Apache-2.0
#include "config/schema.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/suggest.h"

namespace conclave::config {
namespace {

// Calls visit(path, schema) for every field below `schema`.
template <typename Visit>
void walk(const Schema& schema, const std::string& path, const Visit& visit) {
  for (const Schema& child : schema.children) {
    std::string below = path;
    if (schema.type == Schema::Type::kSection) below += (path.empty() ? "" : ".") + child.key;
    if (schema.type == Schema::Type::kList) below += "[]";
    if (schema.type == Schema::Type::kSection) visit(below, child);
    walk(child, below, visit);
  }
}

const Schema* child_of(const Schema& schema, std::string_view key) {
  for (const Schema& child : schema.children) {
    if (schema.type == Schema::Type::kSection) {
      if (child.key == key) return &child;
    } else if (const Schema* found = child_of(child, key)) {
      return found;
    }
  }
  return nullptr;
}

std::string last_key(const std::string& path) { return path.substr(path.find_last_of('.') + 1); }

std::string join(std::span<const std::string> words, const char* between) {
  return fmt::format("{}", fmt::join(words, between));
}

}  // namespace

std::vector<std::string> Schema::keys() const {
  std::vector<std::string> result;
  for (const Schema& child : children) {
    if (type == Type::kSection) {
      result.push_back(child.key);
    } else {
      for (std::string& key : child.keys()) result.push_back(std::move(key));
    }
  }
  return result;
}

const Schema* find(const Schema& root, std::string_view path) {
  const Schema* schema = &root;
  const std::vector<Step> steps = split_path(path);
  if (steps.empty()) return nullptr;
  for (const Step& step : steps) {
    if (const std::string* key = std::get_if<std::string>(&step)) schema = child_of(*schema, *key);
    if (schema == nullptr) return nullptr;
  }
  return schema;
}

std::vector<std::string> leaf_paths(const Schema& root) {
  std::vector<std::string> paths;
  walk(root, "", [&](const std::string& path, const Schema& schema) {
    if (schema.type != Schema::Type::kSection) paths.push_back(path);
  });
  return paths;
}

std::string explain_unknown_key(const Schema& root, const std::string& section, const std::string& key) {
  const Schema* here = section.empty() ? &root : find(root, section);
  const std::vector<std::string> keys = here == nullptr ? std::vector<std::string>{} : here->keys();
  std::vector<std::string> elsewhere;
  std::vector<std::string> names;
  walk(root, "", [&](const std::string& path, const Schema&) {
    names.push_back(last_key(path));
    if (names.back() == key) elsewhere.push_back(path);
  });
  if (!elsewhere.empty() && elsewhere.size() <= 3) return "unknown key here; it exists as " + join(elsewhere, ", ");
  if (const std::string name = known_elsewhere_as(key); !name.empty()) {
    return "unknown key; what other stacks call " + key + " is " + name + " here";
  }
  if (const std::string near = nearest(key, keys); !near.empty()) return "unknown key (did you mean " + near + "?)";
  if (const std::string far = nearest(key, names); !far.empty()) {
    std::vector<std::string> paths;
    walk(root, "", [&](const std::string& path, const Schema&) {
      if (last_key(path) == far) paths.push_back(path);
    });
    if (paths.size() <= 3) return "unknown key here (did you mean " + join(paths, " or ") + "?)";
  }
  return "unknown key; valid here: " + join(keys, ", ");
}

}  // namespace conclave::config
