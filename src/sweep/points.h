// SPDX-License-Identifier: Apache-2.0
// The runs that a sweep file asks for: products of axes and zips, times seeds, without the excluded. Knows paths and
// values as they are written; whether a run can exist is for plan.h.
#pragma once

#include <string>
#include <vector>

#include "sweep/sweep_config.h"

namespace conclave::sweep {

inline constexpr std::string_view kInclude = "include";  // the axis whose values are files laid over the base

struct Setting {
  std::string path;  // "moe.top_k", or kInclude
  config::Node value;
  std::string label;  // the value in a few letters; the stem of an included file

  // "moe.top_k=2"; of an included file its name alone.
  std::string text() const { return path == kInclude ? label : path + "=" + label; }
};

struct Point {
  std::vector<Setting> settings;  // by axis, in the order of the file
  std::optional<int64_t> seed;    // none: that of the base

  // All settings, without the seed: runs with equal cells differ by seed only.
  std::string cell() const;
};

// In the order of the file: the first axis moves slowest, seeds fastest. Unknown paths, empty or unequal lists,
// exclusions and baselines that fit nothing are problems; what is left is returned nevertheless.
std::vector<Point> make_points(const Sweep& sweep, config::Problems& problems);

// Whether `value` of a partial assignment means the same as the setting of that path.
bool agrees(const Setting& setting, const config::Node& value);

// A value in a few letters; of an included file its stem.
std::string label_of(const std::string& path, const config::Node& value);

// Puts `value` at `path`, making the sections on the way. False when something else stands in the way, or an index is
// beyond its list.
bool set_at(config::Node& root, const std::string& path, const config::Node& value);

}  // namespace conclave::sweep
