// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/json_text.h"

#include <limits>
#include <set>
#include <vector>

#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr int kMaxDepth = 32;

int64_t count(const Json& value, const char* key, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()})
    throw DataError("{}: '{}' is not a whole number from 0 to 2^63 - 1", where, key);
  return value.get<int64_t>();
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) {
  // The library takes a NUL byte for the end of the text and would ignore what follows.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos)
    throw DataError("{}: a NUL byte at {}", where, zero);
  std::vector<std::set<std::string>> keys;
  const Json::parser_callback_t watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kMaxDepth) throw DataError("{}: nested deeper than {} levels", where, kMaxDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      throw DataError("{}: key {} is given twice", where, value.dump());
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::exception& error) {
    throw DataError("{}: not valid JSON: {}", where, error.what());
  }
}

const Json& field(const Json& object, const char* key, const std::string& where) {
  if (!object.is_object()) throw DataError("{}: expected an object with '{}'", where, key);
  const auto found = object.find(key);
  if (found == object.end()) throw DataError("{}: '{}' is missing", where, key);
  return *found;
}

std::string text_field(const Json& object, const char* key, const std::string& where) {
  const auto& value = field(object, key, where);
  if (!value.is_string()) throw DataError("{}: '{}' is not a text", where, key);
  return value.get<std::string>();
}

int64_t count_field(const Json& object, const char* key, const std::string& where) {
  return count(field(object, key, where), key, where);
}

std::vector<int64_t> counts_field(const Json& object, const char* key, const std::string& where) {
  const auto& value = field(object, key, where);
  if (!value.is_array()) throw DataError("{}: '{}' is not a list", where, key);
  std::vector<int64_t> counts;
  for (const auto& item : value) counts.push_back(count(item, key, where));
  return counts;
}

}  // namespace conclave::checkpoint
