// SPDX-License-Identifier: Apache-2.0
// Value types that a configuration field may have beside bool, int64_t, double, std::string, enums (EnumNames below),
// std::optional (null), std::vector (lists) and structs with fields(). How each is written is decided by its type here.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace conclave::config {

// "30m", "2h", "45s", "1d"; a bare number is seconds.
struct Duration {
  double seconds = 0;
};

// A number of steps (200, "2k"), or a share of train.steps ("1%").
struct StepCount {
  int64_t steps = 0;
  std::optional<double> share;
  int64_t of(int64_t total) const { return share ? static_cast<int64_t>(*share * static_cast<double>(total) + 0.5) : steps; }
};

// One integer, or a list with one for each MoE layer.
using IntOrList = std::variant<int64_t, std::vector<int64_t>>;

// Names of an enum's values, in the words of the YAML: specialise with
//   static constexpr std::array<std::pair<std::string_view, E>, N> kNames{{...}};
template <typename E>
struct EnumNames;

}  // namespace conclave::config
