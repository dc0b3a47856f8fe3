// SPDX-License-Identifier: Apache-2.0
// Reads the `model:` and `moe:` numbers of a preset through fields(), for tests below the configuration loader. Only
// the value types that shape a model are understood; the loader's own tests cover the rest of the language.
#pragma once

#include <yaml-cpp/yaml.h>

#include <string>
#include <type_traits>

#include "model/model_shape.h"

namespace conclave::model {

template <typename T>
void read_value(const YAML::Node& node, T& value) {
  if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, int64_t> || std::is_same_v<T, double>) {
    value = node.as<T>();
  } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
    value = node.as<int64_t>();
  } else if constexpr (std::is_same_v<T, config::IntOrList>) {
    value = node.as<int64_t>();
  } else if constexpr (std::is_enum_v<T>) {
    for (const auto& [name, entry] : config::EnumNames<T>::kNames)
      if (name == node.as<std::string>()) value = entry;
  } else if constexpr (std::is_same_v<T, std::variant<moe::LayerPattern, std::vector<int64_t>>>) {
    moe::LayerPattern pattern;
    pattern.fields([&](const char* name, auto& member, const char*) {
      if (node[name]) member = node[name].as<int64_t>();
    });
    value = pattern;
  }
}

inline ModelShape read_preset(const std::string& name) {
  const auto file = YAML::LoadFile(std::string(CONCLAVE_SOURCE_DIR) + "/configs/presets/" + name + ".yaml");
  ModelConfig model;
  moe::MoeConfig moe;
  const auto reader = [](const YAML::Node& section) {
    return [section](const char* key, auto& value, const char*) {
      if (section[key]) read_value(section[key], value);
    };
  };
  model.fields(reader(file["model"]));
  moe.fields(reader(file["moe"]));
  return model_shape(model, moe);
}

}  // namespace conclave::model
