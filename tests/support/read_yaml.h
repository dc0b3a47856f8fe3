// SPDX-License-Identifier: Apache-2.0
// Reads `model:` and `moe:` of a YAML file through fields(), for tests of the layers below the configuration loader. It
// knows the value types of these two sections and checks nothing; the loader's own tests cover the language.
#pragma once

#include <yaml-cpp/yaml.h>

#include <optional>
#include <string>
#include <type_traits>
#include <variant>

#include "model/model_config.h"
#include "moe/moe_config.h"

namespace conclave::testing {

template <typename T>
void read_value(const YAML::Node& node, std::vector<T>& list);
template <typename T>
void read_value(const YAML::Node& node, std::optional<T>& value);
inline void read_value(const YAML::Node&, config::Reserved&) {}
inline void read_value(const YAML::Node& node, config::IntOrList& value) { value = node.as<int64_t>(); }
template <typename T>
void read_value(const YAML::Node& node, std::variant<T, std::vector<int64_t>>& value);

template <typename T>
void read_value(const YAML::Node& node, T& value) {
  if constexpr (std::is_enum_v<T>) {
    for (const auto& [name, entry] : config::EnumNames<T>::kNames)
      if (name == node.as<std::string>()) value = entry;
  } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    value = node.as<T>();
  } else {
    value.fields([&](const char* key, auto& member, const auto&...) {
      if (node[key]) read_value(node[key], member);
    });
  }
}

template <typename T>
void read_value(const YAML::Node& node, std::vector<T>& list) {
  for (const auto& item : node) read_value(item, list.emplace_back());
}

template <typename T>
void read_value(const YAML::Node& node, std::optional<T>& value) {
  read_value(node, value.emplace());
}

template <typename T>
void read_value(const YAML::Node& node, std::variant<T, std::vector<int64_t>>& value) {
  if (node.IsSequence()) {
    read_value(node, value.template emplace<std::vector<int64_t>>());
  } else {
    read_value(node, value.template emplace<T>());
  }
}

struct ModelSections {
  model::ModelConfig model;
  moe::MoeConfig moe;
};

// `path` is relative to the repository. Its keys are laid over `sections`; `include:` is not followed.
inline ModelSections read_yaml(const std::string& path, ModelSections sections = {}) {
  const auto file = YAML::LoadFile(std::string(CONCLAVE_SOURCE_DIR) + "/" + path);
  if (file["model"]) read_value(file["model"], sections.model);
  if (file["moe"]) read_value(file["moe"], sections.moe);
  return sections;
}

}  // namespace conclave::testing
