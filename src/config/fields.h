// SPDX-License-Identifier: Apache-2.0
// Visitors over the one list of fields that each configuration struct has: void fields(auto&& field), with
// field(name, member, description[, rule]). From it come the strict reader, the writer and the schema. What does not
// depend on a type is in reader.cpp.
#pragma once

#include <algorithm>
#include <concepts>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "config/node.h"
#include "config/scalars.h"
#include "config/schema.h"
#include "config/types.h"

namespace conclave::config {

struct IgnoreFields {
  void operator()(auto&&...) const {}
};
template <typename T>
concept Section = requires(T value) {
  value.fields(IgnoreFields{});
};
template <typename T>
concept Enumeration = std::is_enum_v<T>;
template <typename T>
concept Scalar = std::same_as<T, bool> || std::same_as<T, int64_t> || std::same_as<T, double> ||
    std::same_as<T, Duration> || std::same_as<T, StepCount> || std::same_as<T, Bytes>;

template <Enumeration E>
std::vector<std::string> enum_names() {
  std::vector<std::string> names;
  for (const auto& [name, value] : EnumNames<E>::kNames) names.emplace_back(name);
  return names;
}
template <Enumeration E>
std::string_view enum_name(E value) {
  for (const auto& [name, known] : EnumNames<E>::kNames) {
    if (known == value) return name;
  }
  return "?";
}

// ---- values to a tree
// ---------------------------------------------------------------------------------------------------

template <Scalar T>
Node to_node(const T& value) {
  return scalar_node(format_value(value));
}
inline Node to_node(const std::string& value) { return scalar_node(value, true); }
inline Node to_node(const Reserved&) { return {}; }
template <Enumeration E>
Node to_node(const E& value) {
  return scalar_node(std::string(enum_name(value)));
}
template <Section T>
Node to_node(const T& value);
template <typename T>
Node to_node(const std::vector<T>& values);
template <typename... T>
Node to_node(const std::variant<T...>& value);

template <typename T>
Node to_node(const std::optional<T>& value) {
  return value ? to_node(*value) : Node{};
}
template <typename T>
Node to_node(const std::vector<T>& values) {
  Node node;
  node.kind = Node::Kind::kList;
  for (const T& value : values) node.list.push_back(to_node(value));
  return node;
}
template <typename... T>
Node to_node(const std::variant<T...>& value) {
  return std::visit([](const auto& held) { return to_node(held); }, value);
}
template <Section T>
Node to_node(const T& value) {
  Node node;
  node.kind = Node::Kind::kMap;
  T copy = value;  // fields() is one list for reading and writing, and reading needs it mutable
  copy.fields([&](std::string_view name, auto& member, std::string_view, const Rule& = {}) {
    node.map.push_back({std::string(name), {}, to_node(member)});
  });
  return node;
}

// ---- structs to a schema
// ------------------------------------------------------------------------------------------------

template <typename T>
struct TypeTag {};

template <typename T>
Schema describe_type(TypeTag<T>) {
  using Type = Schema::Type;
  Schema schema;
  if constexpr (requires { typename T::variant; }) {  // a class made of one
    schema = describe_type(TypeTag<typename T::variant>{});
  } else if constexpr (Section<T>) {
    schema.type = Type::kSection;
    T defaults;
    defaults.fields([&](std::string_view name, auto& member, std::string_view doc, const Rule& rule = {}) {
      Schema child = describe_type(TypeTag<std::remove_cvref_t<decltype(member)>>{});
      child.key = name;
      child.doc = doc;
      child.rule = rule;
      child.default_value = to_node(member);
      schema.children.push_back(std::move(child));
    });
  } else if constexpr (Enumeration<T>) {
    schema.type = Type::kEnum;
    schema.choices = enum_names<T>();
  } else {
    schema.type = std::same_as<T, bool>        ? Type::kBool
                  : std::same_as<T, int64_t>   ? Type::kInt
                  : std::same_as<T, double>    ? Type::kFloat
                  : std::same_as<T, Duration>  ? Type::kDuration
                  : std::same_as<T, StepCount> ? Type::kSteps
                  : std::same_as<T, Bytes>     ? Type::kBytes
                  : std::same_as<T, Reserved>  ? Type::kReserved
                                               : Type::kString;
  }
  return schema;
}
template <typename T>
Schema describe_type(TypeTag<std::optional<T>>) {
  Schema schema = describe_type(TypeTag<T>{});
  schema.nullable = true;
  return schema;
}
template <typename T>
Schema describe_type(TypeTag<std::vector<T>>) {
  Schema schema;
  schema.type = Schema::Type::kList;
  schema.children.push_back(describe_type(TypeTag<T>{}));
  return schema;
}
template <typename... T>
Schema describe_type(TypeTag<std::variant<T...>>) {
  Schema schema;
  schema.type = Schema::Type::kAnyOf;
  (schema.children.push_back(describe_type(TypeTag<T>{})), ...);
  return schema;
}

template <Section T>
Schema describe() {
  return describe_type(TypeTag<T>{});
}

// ---- a tree to values
// ---------------------------------------------------------------------------------------------------

// Reads trees into values of the types above. Every problem goes to `problems`; a value that has one keeps its default.
class Reader {
 public:
  Reader(const Schema& schema, Problems& problems) : schema_(schema), problems_(problems) {}

  template <Section T>
  void read(const Node& node, T& value, const std::string& path, const Rule& = {}) {
    if (!expect_section(node, path)) return;
    std::vector<std::string_view> names;
    value.fields([&](std::string_view name, auto& member, std::string_view, const Rule& rule = {}) {
      names.push_back(name);
      const std::string below = path.empty() ? std::string(name) : path + "." + std::string(name);
      if (const Node* child = node.get(name)) {
        read(*child, member, below, rule);
      } else if constexpr (Section<std::remove_cvref_t<decltype(member)>>) {
        Node absent;  // its defaults hold, but it may require keys
        absent.origin = node.origin;
        read(absent, member, below, rule);
      } else if (rule.required) {
        problems_.add(node.origin, below, "required, but not given");
      }
    });
    report_unknown(node, path, names);
  }
  template <Scalar T>
  void read(const Node& node, T& value, const std::string& path, const Rule& rule = {}) {
    if (!expect_scalar(node, path, rule)) return;
    Parsed<T> parsed = parse(node.text, TypeTag<T>{});
    if (const std::string* reason = std::get_if<std::string>(&parsed)) return refuse(node, path, *reason);
    if constexpr (!std::same_as<T, bool>) {
      if (!within(node, path, rule, as_number(std::get<T>(parsed)))) return;
    }
    value = std::get<T>(parsed);
  }
  void read(const Node& node, std::string& value, const std::string& path, const Rule& rule = {});
  void read(const Node& node, Reserved&, const std::string& path, const Rule& rule = {});
  template <Enumeration E>
  void read(const Node& node, E& value, const std::string& path, const Rule& rule = {}) {
    if (!expect_scalar(node, path, rule, false)) return;
    for (const auto& [name, known] : EnumNames<E>::kNames) {
      if (node.text == name) {
        value = known;
        return;
      }
    }
    refuse_choice(node, path, enum_names<E>());
  }
  template <typename T>
  void read(const Node& node, std::optional<T>& value, const std::string& path, const Rule& rule = {}) {
    if (node.is_null()) {
      value.reset();
      return;
    }
    T held{};
    const size_t before = problems_.count();
    read(node, held, path, rule);
    if (problems_.count() == before) value = held;
  }
  template <typename T>
  void read(const Node& node, std::vector<T>& values, const std::string& path, const Rule& rule = {}) {
    if (!expect_list(node, path)) return;
    values.clear();
    for (size_t i = 0; i < node.list.size(); ++i) {
      T item{};
      read(node.list[i], item, path + "[" + std::to_string(i) + "]", rule);
      values.push_back(std::move(item));
    }
  }
  // A list or a single value (or section).
  template <typename One, typename Item>
  void read(const Node& node, std::variant<One, std::vector<Item>>& value, const std::string& path,
            const Rule& rule = {}) {
    if (node.is_list()) {
      read(node, value.template emplace<std::vector<Item>>(), path, rule);
    } else {
      One single{};
      if (const One* held = std::get_if<One>(&value)) single = *held;
      read(node, single, path, rule);
      value = single;
    }
  }

 private:
  static Parsed<bool> parse(std::string_view text, TypeTag<bool>) { return parse_bool(text); }
  static Parsed<int64_t> parse(std::string_view text, TypeTag<int64_t>) { return parse_int(text); }
  static Parsed<double> parse(std::string_view text, TypeTag<double>) { return parse_double(text); }
  static Parsed<Duration> parse(std::string_view text, TypeTag<Duration>) { return parse_duration(text); }
  static Parsed<StepCount> parse(std::string_view text, TypeTag<StepCount>) { return parse_steps(text); }
  static Parsed<Bytes> parse(std::string_view text, TypeTag<Bytes>) { return parse_bytes(text); }
  static double as_number(int64_t value) { return static_cast<double>(value); }
  static double as_number(double value) { return value; }
  static double as_number(Duration value) { return value.seconds; }
  static double as_number(StepCount value) { return static_cast<double>(value.steps); }
  static double as_number(Bytes value) { return static_cast<double>(value.bytes); }

  bool expect_section(const Node& node, const std::string& path);
  bool expect_list(const Node& node, const std::string& path);
  // A quoted scalar is refused where a number or a truth value is read.
  bool expect_scalar(const Node& node, const std::string& path, const Rule& rule, bool typed = true);
  bool within(const Node& node, const std::string& path, const Rule& rule, double value);
  void refuse(const Node& node, const std::string& path, const std::string& reason);
  void refuse_choice(const Node& node, const std::string& path, const std::vector<std::string>& choices);
  void report_unknown(const Node& node, const std::string& path, const std::vector<std::string_view>& names);

  const Schema& schema_;
  Problems& problems_;
};

}  // namespace conclave::config
