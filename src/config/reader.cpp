// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "config/fields.h"
#include "config/suggest.h"

namespace conclave::config {
namespace {

std::string bound_text(double value) { return fmt::format("{}", value); }

}  // namespace

bool Reader::expect_section(const Node& node, const std::string& path) {
  if (node.is_map() || node.is_null()) return true;  // "moe:" with nothing below it takes all defaults
  problems_.add(node.origin, path, "expected a section with keys, found " + describe_found(node));
  return false;
}

bool Reader::expect_list(const Node& node, const std::string& path) {
  if (node.is_list()) return true;
  problems_.add(node.origin, path, fmt::format("expected a list such as [a, b], found {}", describe_found(node)));
  return false;
}

bool Reader::expect_scalar(const Node& node, const std::string& path, const Rule& rule, bool typed) {
  if (!node.is_scalar()) {
    const bool reason = node.is_list() && !rule.unbuilt.empty();
    problems_.add(
        node.origin, path,
        reason ? std::string(rule.unbuilt) : fmt::format("expected a single value, found {}", describe_found(node)));
    return false;
  }
  if (!typed || !node.quoted) return true;
  problems_.add(node.origin, path, fmt::format("{} is quoted, so it is text; remove the quotes", describe_found(node)));
  return false;
}

bool Reader::within(const Node& node, const std::string& path, const Rule& rule, double value) {
  const bool low = rule.above_min ? value <= rule.min : value < rule.min;
  const bool high = rule.below_max ? value >= rule.max : value > rule.max;
  if (!low && !high) return true;
  const bool below = low || rule.min > -1e300;
  const bool above = high || rule.max < 1e300;
  std::string wanted;
  if (below) wanted += (rule.above_min ? "greater than " : "at least ") + bound_text(rule.min);
  if (below && above) wanted += " and ";
  if (above) wanted += (rule.below_max ? "less than " : "at most ") + bound_text(rule.max);
  problems_.add(node.origin, path, fmt::format("must be {}, is {}", wanted, node.text));
  return false;
}

void Reader::read(const Node& node, std::string& value, const std::string& path, const Rule& rule) {
  if (!node.is_scalar()) {
    problems_.add(node.origin, path, "expected text, found " + describe_found(node));
  } else if (node.text.empty() && rule.required) {
    problems_.add(node.origin, path, "required, but empty");
  } else {
    value = node.text;
  }
}

void Reader::read(const Node& node, Reserved&, const std::string& path, const Rule& rule) {
  if (!node.is_null()) problems_.add(node.origin, path, std::string(rule.unbuilt));
}

void Reader::refuse(const Node& node, const std::string& path, const std::string& reason) {
  problems_.add(node.origin, path, fmt::format("{}, found {}", reason, describe_found(node)));
}

void Reader::refuse_choice(const Node& node, const std::string& path, const std::vector<std::string>& choices) {
  problems_.add(node.origin, path,
                fmt::format("unknown value {}{}; one of: {}", describe_found(node), did_you_mean(node.text, choices),
                            fmt::join(choices, ", ")));
}

void Reader::report_unknown(const Node& node, const std::string& path, const std::vector<std::string_view>& names) {
  for (const Entry& entry : node.map) {
    if (std::find(names.begin(), names.end(), entry.key) != names.end()) continue;
    const std::string key = entry.key.substr(0, 60);
    // Looking for a similar key takes time; a file with very many unknown keys is not a configuration.
    problems_.add(entry.origin, path.empty() ? key : path + "." + key,
                  problems_.flooded() ? "unknown key" : explain_unknown_key(schema_, path, key));
  }
}

}  // namespace conclave::config
