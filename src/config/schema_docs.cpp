// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "config/schema.h"
#include "config/yaml.h"
#include "core/error.h"

namespace conclave::config {
namespace {

using Json = nlohmann::ordered_json;
using Type = Schema::Type;

std::string type_name(const Schema& schema) {
  switch (schema.type) {
    case Type::kBool:
      return "true or false";
    case Type::kInt:
      return "integer";
    case Type::kFloat:
      return "number";
    case Type::kString:
      return "string";
    case Type::kEnum:
      return fmt::format("{}", fmt::join(schema.choices, ", "));
    case Type::kDuration:
      return "time";
    case Type::kBytes:
      return "bytes";
    case Type::kSteps:
      return "steps or share";
    case Type::kReserved:
      return "null";
    case Type::kSection:
      return "section";
    case Type::kList:
      return "list of " + type_name(schema.children[0]);
    case Type::kAnyOf:
      return type_name(schema.children[0]) + ", or " + type_name(schema.children[1]);
  }
  return "";
}

std::string default_text(const Schema& schema) {
  if (schema.rule.required) return "required";
  const Node& value = schema.default_value;
  if (value.is_null()) return "`null`";
  if (value.is_scalar()) return fmt::format("`{}`", write_scalar(value));
  if (value.is_map()) return "";
  std::vector<std::string> items;
  for (const Node& item : value.list) items.push_back(write_scalar(item));
  return fmt::format("`[{}]`", fmt::join(items, ", "));
}

void add_rows(const Schema& schema, const std::string& path, std::string& text) {
  for (const Schema& child : schema.children) {
    if (schema.type != Type::kSection) {
      add_rows(child, schema.type == Type::kList ? path + "[]" : path, text);
      continue;
    }
    const std::string below = path.empty() ? child.key : fmt::format("{}.{}", path, child.key);
    if (child.type != Type::kSection) {
      text += fmt::format("| `{}` | {} | {} | {} |\n", below, type_name(child), default_text(child), child.doc);
    }
    add_rows(child, below, text);
  }
}

// A value, or text from the environment or another key.
Json or_reference(Json plain, const char* units) {
  Json text{{"type", "string"}, {"pattern", fmt::format("^({}|.*\\$\\{{.*)$", units)}};
  return Json{{"anyOf", Json::array({std::move(plain), std::move(text)})}};
}

void add_bounds(const Rule& rule, Json& json) {
  if (rule.min > -1e300) json[rule.above_min ? "exclusiveMinimum" : "minimum"] = rule.min;
  if (rule.max < 1e300) json[rule.below_max ? "exclusiveMaximum" : "maximum"] = rule.max;
}

Json value_schema(const Schema& schema);

Json section_schema(const Schema& schema) {
  Json json{{"type", "object"}, {"additionalProperties", false}, {"properties", Json::object()}};
  Json required = Json::array();
  for (const Schema& child : schema.children) {
    Json value = value_schema(child);
    if (!child.doc.empty()) value["description"] = child.doc;
    json["properties"][child.key] = std::move(value);
    // Includes and --set may supply what a file leaves out, so only the items of lists can require keys.
    if (child.rule.required && schema.key.empty()) required.push_back(child.key);
  }
  if (!required.empty()) json["required"] = std::move(required);
  return json;
}

Json value_schema(const Schema& schema) {
  Json json;
  Json number{{"type", schema.type == Type::kInt ? "integer" : "number"}};
  add_bounds(schema.rule, number);
  const char* count = "[0-9.]+([eE]\\+?[0-9]+)?([kMBT]|[KMGT]i)?";
  switch (schema.type) {
    case Type::kBool:
      json = or_reference(Json{{"type", "boolean"}}, "\\$");
      break;
    case Type::kInt:
      json = or_reference(std::move(number), count);
      break;
    case Type::kFloat:
      json = or_reference(std::move(number), "[0-9.]+[eE]-?[0-9]+");
      break;
    case Type::kString:
      json = Json{{"type", Json::array({"string", "number", "boolean"})}};
      break;
    case Type::kEnum:
      json = or_reference(Json{{"enum", schema.choices}}, "\\$");
      break;
    case Type::kDuration:
      json = or_reference(std::move(number), "([0-9.]+[smhd])+");
      break;
    case Type::kBytes:
      json = or_reference(std::move(number), "[0-9.]+([kMGT]|[KMGT]i)?B");
      break;
    case Type::kSteps:
      json = or_reference(std::move(number), fmt::format("[0-9.]+%|{}", count).c_str());
      break;
    case Type::kReserved:
      json = Json{{"type", "null"}};
      break;
    case Type::kSection:
      json = section_schema(schema);
      break;
    case Type::kList:
      json = Json{{"type", "array"}, {"items", value_schema(schema.children[0])}};
      break;
    case Type::kAnyOf:
      json["anyOf"] = Json::array();
      for (const Schema& child : schema.children) json["anyOf"].push_back(value_schema(child));
      break;
  }
  if (schema.nullable || schema.type == Type::kSection) {
    json = Json{{"anyOf", Json::array({std::move(json), Json{{"type", "null"}}})}};
  }
  return json;
}

}  // namespace

std::string docs_tables(const Schema& root) {
  std::string text;
  for (const Schema& section : root.children) {
    text += fmt::format("### `{}`: {}\n\n| key | type | default | meaning |\n|---|---|---|---|\n", section.key,
                        section.doc);
    add_rows(section, "", text);
    text += "\n";
  }
  text.pop_back();
  return text;
}

std::string replace_generated(const std::string& page, std::string_view command, const std::string& generated) {
  const std::string first = fmt::format("<!-- generated by `{}`: begin -->\n", command);
  const std::string last = fmt::format("<!-- generated by `{}`: end -->", command);
  const size_t begin = page.find(first);
  const size_t end = page.find(last);
  if (begin == std::string::npos || end == std::string::npos || end < begin) {
    throw UsageError("the page lacks the lines\n{}{}\nbetween which the tables belong", first, last);
  }
  return page.substr(0, begin + first.size()) + generated + page.substr(end);
}

Json json_schema(const Schema& root) {
  Json json{{"$schema", "https://json-schema.org/draft/2020-12/schema"}, {"title", "Conclave run configuration"}};
  Json top = section_schema(root);
  top["properties"]["include"] = Json{{"description", "files read first, later ones win; this file wins over all"},
                                      {"type", "array"},
                                      {"items", Json{{"type", "string"}}}};
  top.erase("required");
  json.update(top);
  return json;
}

}  // namespace conclave::config
