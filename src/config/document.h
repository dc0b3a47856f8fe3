// SPDX-License-Identifier: Apache-2.0
// From files and command line to one tree: includes merged, overrides applied, ${...} replaced, every value with its
// origin. The tree is then read into structs by fields.h; there is no other way into them.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "config/node.h"
#include "config/schema.h"

namespace conclave::config {

// One --set path=value, --set-file path=FILE or --unset path; applied in the order given.
struct Override {
  enum class Kind { kSet, kSetFile, kUnset };
  Kind kind = Kind::kSet;
  std::string text;
};

// The document of `file` with `overrides` applied. Throws ConfigError for what cannot be parsed or found; other
// problems are added to `problems`.
Node load_document(const std::filesystem::path& file, std::span<const Override> overrides, const Schema& schema,
                   Problems& problems);

// The steps of load_document, in order.
Node read_with_includes(const std::filesystem::path& file, Problems& problems);
void apply_overrides(Node& root, std::span<const Override> overrides, const Schema& schema, Problems& problems);
void expand_references(Node& root, const Schema& schema, Problems& problems);

}  // namespace conclave::config
