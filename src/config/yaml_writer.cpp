// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "config/yaml.h"

namespace conclave::config {
namespace {

bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
         c == '.' || c == '/';
}

// True when some YAML reader could take the word for null, a truth value or a number.
bool looks_typed(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}) {
    if (lower == word) return true;
  }
  const char first = text.front();
  return (first >= '0' && first <= '9') || first == '-' ||
         (first == '.' && !text.starts_with("./") && !text.starts_with("../"));
}

std::string quote(std::string_view text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else if (c == '$' && text.substr(i + 1, 1) == "{") {
      out += "$$";  // "$${" is how a literal "${" is written
    } else {
      out += c;
    }
  }
  return out + '"';
}

class Writer {
 public:
  explicit Writer(bool origins) : origins_(origins) {}

  void value(const Node& node, size_t indent) {
    if (node.is_map() && !node.map.empty()) return map(node, indent);
    if (node.is_list() && !in_one_line(node)) return list(node, indent);
    text_ += ' ' + line_value(node);
    if (origins_) text_ += "  # " + node.origin.where();
    text_ += '\n';
  }
  std::string take() { return std::move(text_); }
  void map_body(const Node& node, size_t indent, bool first_inline) {
    for (const Entry& entry : node.map) {
      if (!first_inline) text_.append(indent, ' ');
      first_inline = false;
      text_ += entry.key + ':';
      value(entry.value, indent + 2);
    }
  }

 private:
  static bool in_one_line(const Node& node) {
    return std::all_of(node.list.begin(), node.list.end(),
                       [](const Node& item) { return !item.is_map() && !item.is_list(); });
  }
  static std::string line_value(const Node& node) {
    if (node.is_null()) return "null";
    if (node.is_scalar()) return write_scalar(node);
    if (node.is_map()) return "{}";
    std::string text = "[";
    for (const Node& item : node.list) text += (text.size() > 1 ? ", " : "") + line_value(item);
    return text + "]";
  }
  void map(const Node& node, size_t indent) {
    text_ += '\n';
    map_body(node, indent, false);
  }
  void list(const Node& node, size_t indent) {
    text_ += '\n';
    for (const Node& item : node.list) {
      text_.append(indent, ' ');
      text_ += '-';
      if (item.is_map() && !item.map.empty()) {
        text_ += ' ';
        map_body(item, indent + 2, true);
      } else {
        value(item, indent + 2);
      }
    }
  }

  bool origins_;
  std::string text_;
};

}  // namespace

std::string write_scalar(const Node& node) {
  const std::string& text = node.text;
  if (!node.quoted) return text;
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), is_word) && !looks_typed(text);
  return plain ? text : quote(text);
}

std::string write_yaml(const Node& root, bool origins) {
  Writer writer(origins);
  writer.map_body(root, 0, false);
  return writer.take();
}

}  // namespace conclave::config
