// SPDX-License-Identifier: Apache-2.0
// Value types that a configuration field may have beside bool, int64_t, double, std::string, enums (EnumNames below),
// std::optional (null), std::vector (lists) and structs with fields(). How each is written is decided by its type here;
// the rules that concern one value alone stand beside it in fields(), rules between values are in train/.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace conclave::config {

// "30m", "2h", "45s", "1d", "1h30m"; a bare number is seconds.
struct Duration {
  double seconds = 0;
};

// A number of steps (200, "2k"), or a share of train.steps ("1%").
struct StepCount {
  int64_t steps = 0;
  std::optional<double> share;
  int64_t of(int64_t total) const {
    return share ? static_cast<int64_t>(*share * static_cast<double>(total) + 0.5) : steps;
  }
};

// "64GiB", "1.5MB", "512KiB"; a bare number is bytes.
struct Bytes {
  int64_t bytes = 0;
};

// A key whose feature is not built: null is the only value; the reason is its `Rule::unbuilt`.
struct Reserved {};

// One integer, or a list with one for each MoE layer.
using IntOrList = std::variant<int64_t, std::vector<int64_t>>;

// One text, or several.
using TextOrList = std::variant<std::string, std::vector<std::string>>;

// What must hold of one value, as the fourth argument of field(); durations count in seconds.
struct Rule {
  bool required = false;
  double min = -std::numeric_limits<double>::infinity();
  bool above_min = false;  // the value must be greater than min, not equal
  double max = std::numeric_limits<double>::infinity();
  bool below_max = false;
  std::string_view unbuilt{};  // why a Reserved value, or a list where a single value is read, is refused
};

inline constexpr Rule kRequired{.required = true};
// Sizes and ranks have a ceiling far beyond any machine, so that products of a few of them fit into 64 bits.
inline constexpr Rule kSize{.min = 1, .max = 1e9};
inline constexpr Rule kRequiredSize{.required = true, .min = 1, .max = 1e9};
inline constexpr Rule kRequiredLayers{.required = true, .min = 1, .max = 10000};
inline constexpr Rule kRanks{.min = 1, .max = 32768};
inline constexpr Rule kPositive{.min = 0, .above_min = true};
inline constexpr Rule kNotNegative{.min = 0};
inline constexpr Rule kDecayRate{.min = 0, .max = 1, .below_max = true};

// Names of an enum's values, in the words of the YAML: specialise with
//   static constexpr std::array<std::pair<std::string_view, E>, N> kNames{{...}};
template <typename E>
struct EnumNames;

}  // namespace conclave::config
