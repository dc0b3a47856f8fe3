// SPDX-License-Identifier: Apache-2.0
#include "sweep/points.h"

#include <fmt/format.h>

#include <algorithm>

#include "config/json.h"
#include "config/suggest.h"
#include "train/run_config.h"

namespace conclave::sweep {
namespace {

using config::Entry;
using config::Node;
using config::Problems;

constexpr size_t kMostPoints = 10000;
constexpr size_t kLongLabel = 40;

using Alternative = std::vector<Setting>;    // what is set together
using Dimension = std::vector<Alternative>;  // one of them at a time

class PointMaker {
 public:
  PointMaker(const Sweep& sweep, Problems& problems) : sweep_(sweep), problems_(problems) {}

  std::vector<Point> make() {
    for (const Entry& axis : sweep_.axes.map) add_axis(axis);
    for (const Node& group : sweep_.zip.list) add_zip(group);
    check_partial(sweep_.baseline, "baseline");
    for (const Node& rule : sweep_.exclude.list) check_partial(rule, "exclude");
    size_t count = std::max<size_t>(sweep_.config.seeds.size(), 1);
    for (const Dimension& dimension : dimensions_) count *= std::max<size_t>(dimension.size(), 1);
    if (count > kMostPoints) {
      problems_.add(sweep_.axes.origin, "axes", fmt::format("{} runs; the limit is {}", count, kMostPoints));
      return {};
    }
    std::vector<Point> points;
    combine(0, {}, points);
    leave_out(points);
    return points;
  }

 private:
  bool known(const Entry& axis) {
    const std::string& path = axis.key;
    if (path == kInclude) return claim(axis);
    const config::Schema& schema = train::run_schema();
    if (path == "train.seed") {
      problems_.add(axis.origin, path, "is no axis; list the seeds under seeds:");
    } else if (config::split_path(path).empty() || config::find(schema, path) == nullptr) {
      const auto cut = path.find_last_of('.');
      const std::string section = cut == std::string::npos ? "" : path.substr(0, cut);
      const bool in_section = !section.empty() && config::find(schema, section) != nullptr;
      problems_.add(axis.origin, path,
                    in_section ? config::explain_unknown_key(schema, section, path.substr(cut + 1))
                               : fmt::format("unknown key{}", config::did_you_mean(path, config::leaf_paths(schema))));
    } else {
      return claim(axis);
    }
    return false;
  }

  bool claim(const Entry& axis) {
    const bool fresh = std::find(paths_.begin(), paths_.end(), axis.key) == paths_.end();
    if (fresh) paths_.push_back(axis.key);
    if (!fresh) problems_.add(axis.origin, axis.key, "varies already on another axis");
    return fresh;
  }

  bool has_values(const Entry& axis) {
    if (axis.value.is_list() && !axis.value.list.empty()) return true;
    problems_.add(axis.value.origin, axis.key,
                  axis.value.is_list()
                      ? std::string("an axis without values; name at least one")
                      : fmt::format("expected a list of values, found {}; a list as value is written [[a, b]]",
                                    config::describe_found(axis.value)));
    return false;
  }

  Setting setting(const std::string& path, const Node& value) {
    if (path == kInclude && (!value.is_scalar() || value.text.empty())) {
      problems_.add(value.origin, path,
                    fmt::format("expected the name of a file, found {}", config::describe_found(value)));
    }
    return {path, value, label_of(path, value)};
  }

  void add_axis(const Entry& axis) {
    const bool usable = known(axis);
    if (!has_values(axis) || !usable) return;
    Dimension dimension;
    for (const Node& value : axis.value.list) dimension.push_back({setting(axis.key, value)});
    dimensions_.push_back(std::move(dimension));
  }

  void add_zip(const Node& group) {
    Dimension dimension;
    for (const Entry& axis : group.map) {
      const bool usable = known(axis);
      if (!has_values(axis) || !usable) continue;
      if (dimension.empty()) dimension.resize(axis.value.list.size());
      if (dimension.size() != axis.value.list.size()) {
        problems_.add(axis.value.origin, axis.key,
                      fmt::format("{} values, but the others of this zip have {}; they move together",
                                  axis.value.list.size(), dimension.size()));
        continue;
      }
      for (size_t i = 0; i < dimension.size(); ++i) dimension[i].push_back(setting(axis.key, axis.value.list[i]));
    }
    if (!dimension.empty()) dimensions_.push_back(std::move(dimension));
  }

  // Every path of a partial assignment varies, and takes the value somewhere.
  void check_partial(const Node& partial, const std::string& key) {
    for (const Entry& entry : partial.map) {
      if (std::find(paths_.begin(), paths_.end(), entry.key) == paths_.end()) {
        problems_.add(
            entry.origin, key,
            fmt::format("'{}' does not vary in this sweep{}", entry.key, config::did_you_mean(entry.key, paths_)));
      } else if (!taken(entry)) {
        problems_.add(entry.value.origin, key,
                      fmt::format("{} never is {}", entry.key, config::describe_found(entry.value)));
      }
    }
  }

  bool taken(const Entry& wanted) const {
    for (const Dimension& dimension : dimensions_) {
      for (const Alternative& alternative : dimension) {
        for (const Setting& setting : alternative) {
          if (setting.path == wanted.key && agrees(setting, wanted.value)) return true;
        }
      }
    }
    return false;
  }

  void combine(size_t dimension, const Point& point, std::vector<Point>& points) {
    if (dimension < dimensions_.size()) {
      for (const Alternative& alternative : dimensions_[dimension]) {
        Point next = point;
        next.settings.insert(next.settings.end(), alternative.begin(), alternative.end());
        combine(dimension + 1, next, points);
      }
      return;
    }
    points.push_back(point);
    for (size_t i = 0; i < sweep_.config.seeds.size(); ++i) {
      if (i > 0) points.push_back(point);
      points.back().seed = sweep_.config.seeds[i];
    }
  }

  void leave_out(std::vector<Point>& points) {
    for (const Node& rule : sweep_.exclude.list) {
      const size_t left_out = std::erase_if(points, [&](const Point& point) { return covers(rule, point); });
      const bool could =
          std::all_of(rule.map.begin(), rule.map.end(), [&](const Entry& entry) { return taken(entry); });
      if (left_out == 0 && could) {
        problems_.add(rule.origin, "exclude", "leaves nothing out: no combination agrees with it");
      }
    }
    if (points.empty() && problems_.count() == 0) problems_.add({}, "exclude", "leaves no run");
  }

  static bool covers(const Node& rule, const Point& point) {
    return !rule.map.empty() && std::all_of(rule.map.begin(), rule.map.end(), [&](const Entry& entry) {
      return std::any_of(point.settings.begin(), point.settings.end(), [&](const Setting& setting) {
        return setting.path == entry.key && agrees(setting, entry.value);
      });
    });
  }

  const Sweep& sweep_;
  Problems& problems_;
  std::vector<std::string> paths_;
  std::vector<Dimension> dimensions_;
};

}  // namespace

std::string Point::cell() const {
  std::vector<std::string> texts;
  for (const Setting& setting : settings) texts.push_back(setting.text());
  return texts.empty() ? "base" : fmt::format("{}", fmt::join(texts, " "));
}

std::string label_of(const std::string& path, const Node& value) {
  if (path == kInclude) return std::filesystem::path(value.text).stem().string();
  std::string text = value.is_scalar() ? value.text : config::tree_to_json(value).dump();
  std::erase(text, '"');
  if (text.size() > kLongLabel) text = fmt::format("{:.{}}...", text, kLongLabel);
  return text;
}

bool agrees(const Setting& setting, const Node& value) {
  if (!setting.value.is_scalar() || !value.is_scalar()) {
    return config::tree_to_json(setting.value) == config::tree_to_json(value);
  }
  if (setting.value.text == value.text || (setting.path == kInclude && setting.label == value.text)) return true;
  const auto a = config::parse_double(setting.value.text), b = config::parse_double(value.text);
  return a.index() == 0 && b.index() == 0 && std::get<double>(a) == std::get<double>(b);
}

bool set_at(Node& root, const std::string& path, const Node& value) {
  Node* node = &root;
  for (const config::Step& step : config::split_path(path)) {
    if (const size_t* index = std::get_if<size_t>(&step)) {
      if (!node->is_list() || *index > node->list.size()) return false;
      if (*index == node->list.size()) node->list.emplace_back();
      node = &node->list[*index];
      continue;
    }
    if (node->is_null()) node->kind = Node::Kind::kMap;
    if (!node->is_map()) return false;
    node = &node->at_or_new(std::get<std::string>(step), value.origin);
  }
  *node = value;
  return true;
}

std::vector<Point> make_points(const Sweep& sweep, Problems& problems) { return PointMaker(sweep, problems).make(); }

}  // namespace conclave::sweep
