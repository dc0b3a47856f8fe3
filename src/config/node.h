// SPDX-License-Identifier: Apache-2.0
// The tree of a YAML document with the position of every key and value: what includes, --set and references edit, what
// structs are read from and written to. It knows nothing of types; a scalar is its text.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "config/problems.h"

namespace conclave::config {

struct Entry;

struct Node {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  std::string text;     // of a scalar
  bool quoted = false;  // a quoted scalar is a string, whatever it looks like
  std::vector<Node> list;
  std::vector<Entry> map;  // in the order written
  Origin origin;

  bool is_null() const { return kind == Kind::kNull; }
  bool is_scalar() const { return kind == Kind::kScalar; }
  bool is_list() const { return kind == Kind::kList; }
  bool is_map() const { return kind == Kind::kMap; }
  // The value of a key of a map; null pointer when absent or not a map.
  const Node* get(std::string_view key) const;
  Node* get(std::string_view key) { return const_cast<Node*>(std::as_const(*this).get(key)); }
  Node& at_or_new(std::string_view key, const Origin& origin);
  void erase(std::string_view key);
};

struct Entry {
  std::string key;
  Origin origin;
  Node value;
};

inline Node scalar_node(std::string text, bool quoted = false) {
  Node node;
  node.kind = Node::Kind::kScalar;
  node.text = std::move(text);
  node.quoted = quoted;
  return node;
}

// "moe.balance.losses[0].type" in steps; empty when `path` is not written so.
using Step = std::variant<std::string, size_t>;
std::vector<Step> split_path(std::string_view path);

// The node at a path, or a null pointer.
const Node* find(const Node& root, std::string_view path);
// Where the value at `path` comes from: its own place, else that of its nearest written section (for a default).
Origin origin_of(const Node& root, std::string_view path);

// "a 24", "a list", ... for messages: what was found.
std::string describe_found(const Node& node);

}  // namespace conclave::config
