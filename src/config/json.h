// SPDX-License-Identifier: Apache-2.0
// A configuration struct as JSON, every scalar as the text the YAML writer gives it: what a checkpoint compares on
// resume.
#pragma once

#include <nlohmann/json.hpp>

#include "config/fields.h"

namespace conclave::config {

inline nlohmann::json tree_to_json(const Node& node) {
  if (node.is_scalar()) return node.text;
  if (node.is_list()) {
    auto list = nlohmann::json::array();
    for (const auto& item : node.list) list.push_back(tree_to_json(item));
    return list;
  }
  if (!node.is_map()) return nullptr;
  auto map = nlohmann::json::object();
  for (const auto& entry : node.map) map[entry.key] = tree_to_json(entry.value);
  return map;
}

template <typename T>
nlohmann::json to_json(const T& section) {
  return tree_to_json(to_node(section));
}

}  // namespace conclave::config
