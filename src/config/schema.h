// SPDX-License-Identifier: Apache-2.0
// What may be written in a configuration, as data: every key with its type, default, rule and description, made from
// the structs by describe() in fields.h. Suggestions, the tables of docs/configuration.md and the JSON Schema come from
// it.
#pragma once

#include <nlohmann/json.hpp>

#include "config/node.h"
#include "config/types.h"

namespace conclave::config {

struct Schema {
  enum class Type {
    kBool,
    kInt,
    kFloat,
    kString,
    kEnum,
    kDuration,
    kBytes,
    kSteps,
    kReserved,
    kSection,
    kList,
    kAnyOf
  };
  std::string key;
  std::string doc;
  Type type = Type::kSection;
  bool nullable = false;
  Rule rule;
  std::vector<std::string> choices;  // of an enum
  Node default_value;
  // Section: its fields; list: one, the item; any of: the alternatives.
  std::vector<Schema> children;

  // The keys that may stand directly in this section; of all alternatives where there are several.
  std::vector<std::string> keys() const;
};

// The schema of "moe.balance.losses[0].type"; indices are ignored. A null pointer for a path that does not exist.
const Schema* find(const Schema& root, std::string_view path);
// All paths that hold values or lists, "moe.balance.losses[].type" for the items of a list.
std::vector<std::string> leaf_paths(const Schema& root);

// Message for an unknown `key` in the section at `section` ("" = top level): what it is called here, where it exists,
// or the nearest valid key.
std::string explain_unknown_key(const Schema& root, const std::string& section, const std::string& key);

// One Markdown table per section: key, type, default, meaning.
std::string docs_tables(const Schema& root);
// `page` with what stands between the two marker lines of `command` ("conclave config docs") replaced by `generated`.
// Throws UsageError without the markers.
std::string replace_generated(const std::string& page, std::string_view command, const std::string& generated);
// JSON Schema, draft 2020-12, for editors.
nlohmann::ordered_json json_schema(const Schema& root);

}  // namespace conclave::config
