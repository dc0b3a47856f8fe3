// SPDX-License-Identifier: Apache-2.0
#include "config/node.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave::config {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The steps of one part between dots, "losses[0]"; false when it is not written so.
bool split_part(std::string_view part, std::vector<Step>& steps) {
  size_t end = 0;
  while (end < part.size() && (is_letter(part[end]) || is_digit(part[end]))) ++end;
  if (end == 0 || is_digit(part[0])) return false;
  steps.emplace_back(std::string(part.substr(0, end)));
  while (end < part.size()) {
    const size_t close = part.find(']', end);
    if (part[end] != '[' || close == std::string_view::npos) return false;
    const std::string_view digits = part.substr(end + 1, close - end - 1);
    if (digits.empty() || digits.size() > 6 || !std::all_of(digits.begin(), digits.end(), is_digit)) return false;
    steps.emplace_back(static_cast<size_t>(std::stoul(std::string(digits))));
    end = close + 1;
  }
  return true;
}

}  // namespace

const Node* Node::get(std::string_view key) const {
  const auto found = std::find_if(map.begin(), map.end(), [&](const Entry& entry) { return entry.key == key; });
  return found == map.end() ? nullptr : &found->value;
}

Node& Node::at_or_new(std::string_view key, const Origin& origin_of_key) {
  if (Node* known = get(key)) return *known;
  map.push_back({std::string(key), origin_of_key, {}});
  map.back().value.origin = origin_of_key;
  return map.back().value;
}

void Node::erase(std::string_view key) {
  std::erase_if(map, [&](const Entry& entry) { return entry.key == key; });
}

std::vector<Step> split_path(std::string_view path) {
  std::vector<Step> steps;
  while (true) {
    const size_t dot = path.find('.');
    if (!split_part(path.substr(0, dot), steps)) return {};
    if (dot == std::string_view::npos) return steps;
    path.remove_prefix(dot + 1);
  }
}

const Node* find(const Node& root, std::string_view path) {
  const Node* node = &root;
  const std::vector<Step> steps = split_path(path);
  if (steps.empty()) return nullptr;
  for (const Step& step : steps) {
    if (const size_t* index = std::get_if<size_t>(&step)) {
      node = *index < node->list.size() ? &node->list[*index] : nullptr;
    } else {
      node = node->get(std::get<std::string>(step));
    }
    if (node == nullptr) return nullptr;
  }
  return node;
}

Origin origin_of(const Node& root, std::string_view path) {
  while (true) {
    if (const Node* node = find(root, path)) return node->origin;
    const size_t cut = path.find_last_of(".[");
    if (cut == std::string_view::npos) return root.origin;
    path = path.substr(0, cut);
  }
}

std::string describe_found(const Node& node) {
  if (node.is_null()) return "nothing (null)";
  if (node.is_list()) return "a list";
  if (node.is_map()) return "a section";
  const std::string_view text = node.text;
  const std::string shown(text.substr(0, 60));
  return fmt::format("{}{}{}", node.quoted ? "the string \"" : "'", text.size() > 60 ? shown + "..." : shown,
                     node.quoted ? "\"" : "'");
}

}  // namespace conclave::config
