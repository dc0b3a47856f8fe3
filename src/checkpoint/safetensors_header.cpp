// SPDX-License-Identifier: Apache-2.0
// The header's JSON as a stream of events: no document tree is built, so a hostile header costs no more memory than its
// text.
#include <algorithm>
#include <limits>
#include <set>

#include "checkpoint/json_text.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace conclave::checkpoint {
namespace {

constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxMetadataKeys = 64;
constexpr size_t kMaxMetadataBytes = 4096;

bool acceptable(std::string_view name, NameRule rule) {
  if (rule == NameRule::kOurs) return name_is_ours(name);
  const bool printable = std::all_of(name.begin(), name.end(), [](unsigned char c) { return c >= 0x20 && c != 0x7f; });
  return printable && !name.empty() && name.size() <= 1024;
}

// For messages: a name from a hostile file must not reach the terminal raw.
std::string shown(const std::string& text) {
  return Json(text.substr(0, 80)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

// The grammar is {name: {dtype, shape, data_offsets}, "__metadata__": {text: text}}: where the next event belongs is
// decided by the depth and the last key of each level.
class HeaderEvents final : public nlohmann::json_sax<Json> {
 public:
  HeaderEvents(NameRule rule, const std::string& where) : rule_(rule), where_(where) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool start_object(size_t) override {
    if (in_list_ || depth_ == 2) refuse("an object where none belongs");
    if (depth_ == 1) {
      seen_fields_.clear();
      if (!in_metadata()) header_.tensors.push_back({name_, "", {}, 0, 0});
    }
    ++depth_;
    return true;
  }

  bool end_object() override {
    if (--depth_ == 1 && !in_metadata() && seen_fields_.size() != 3)
      refuse(fmt::format("tensor {} lacks dtype, shape or data_offsets", shown(name_)));
    return true;
  }

  bool key(string_t& key) override {
    if (depth_ == 1) {
      if (!names_.insert(key).second) refuse(fmt::format("{} is given twice", shown(key)));
      if (key != "__metadata__" && !acceptable(key, rule_))
        refuse(fmt::format("{} is no acceptable tensor name", shown(key)));
      name_ = key;
      return true;
    }
    if (!seen_fields_.insert(key).second) refuse(fmt::format("{} is given twice in {}", shown(key), shown(name_)));
    const bool known = in_metadata() || key == "dtype" || key == "shape" || key == "data_offsets";
    if (!known) refuse(fmt::format("tensor {} has an unknown field {}", shown(name_), shown(key)));
    field_ = key;
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata() || in_list_ || field_ == "dtype") refuse("a list where none belongs");
    in_list_ = true;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    in_list_ = false;
    if (field_ == "data_offsets" && offsets_ != 2)
      refuse(fmt::format("{}: data_offsets are two numbers", shown(name_)));
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_list_) refuse("a number where none belongs");
    if (value > uint64_t{std::numeric_limits<int64_t>::max()})
      refuse(fmt::format("{}: {} is beyond 2^63 - 1", shown(name_), value));
    auto& tensor = header_.tensors.back();
    const auto number = static_cast<int64_t>(value);
    if (field_ == "shape") {
      if (tensor.shape.size() == kMaxDimensions) refuse(fmt::format("{}: more than 8 dimensions", shown(name_)));
      tensor.shape.push_back(number);
      return true;
    }
    ++offsets_;
    if (offsets_ > 2) refuse(fmt::format("{}: data_offsets are two numbers", shown(name_)));
    if (offsets_ == 2 && number < tensor.begin) refuse(fmt::format("{}: ends before it begins", shown(name_)));
    (offsets_ == 1 ? tensor.begin : tensor.bytes) = offsets_ == 1 ? number : number - tensor.begin;
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ != 2 || in_list_) refuse("a text where none belongs");
    if (in_metadata()) {
      if (value.size() + field_.size() > kMaxMetadataBytes || header_.metadata.size() == kMaxMetadataKeys)
        refuse("__metadata__ is limited to 64 entries of 4 KiB");
      header_.metadata[field_] = value;
      return true;
    }
    if (field_ != "dtype") refuse("a text where numbers belong");
    if (dtype_size(value) == 0) refuse(fmt::format("{}: element type {} is not supported", shown(name_), shown(value)));
    header_.tensors.back().dtype = value;
    return true;
  }

  bool null() override { refuse("a null"); }
  bool boolean(bool) override { refuse("a boolean"); }
  bool number_integer(number_integer_t) override { refuse("a number with a sign"); }
  bool number_float(number_float_t, const string_t& text) override {
    refuse(fmt::format("{} is not a whole number within 64 bits", shown(text)));
  }
  bool binary(binary_t&) override { refuse("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    refuse(fmt::format("not valid JSON at byte {}: {}", position, error.what()));
  }

 private:
  bool in_metadata() const { return name_ == "__metadata__"; }
  [[noreturn]] void refuse(const std::string& why) const { throw DataError("{}: safetensors header: {}", where_, why); }

  NameRule rule_;
  const std::string& where_;
  SafetensorsHeader header_;
  int depth_ = 0;
  bool in_list_ = false;
  int offsets_ = 0;
  std::string name_, field_;
  std::set<std::string> names_, seen_fields_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, NameRule rule, const std::string& where) {
  if (json.empty() || json.front() != '{')
    throw DataError("{}: the safetensors header does not start with '{{'", where);
  if (json.find('\0') != std::string_view::npos) throw DataError("{}: a NUL byte in the safetensors header", where);
  const auto last = json.find_last_not_of(' ');
  if (json[last] != '}') throw DataError("{}: the safetensors header does not end with '}}' and spaces", where);
  HeaderEvents events(rule, where);
  Json::sax_parse(json.begin(), json.end(), &events);
  return events.take();
}

}  // namespace conclave::checkpoint
