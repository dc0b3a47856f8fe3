// SPDX-License-Identifier: Apache-2.0
#include "config/scalars.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <span>

namespace conclave::config {
namespace {

struct Unit {
  std::string_view name;
  int64_t factor;
};

constexpr std::array<Unit, 8> kCountUnits{{{"k", 1'000},
                                           {"M", 1'000'000},
                                           {"B", 1'000'000'000},
                                           {"T", 1'000'000'000'000},
                                           {"Ki", int64_t{1} << 10},
                                           {"Mi", int64_t{1} << 20},
                                           {"Gi", int64_t{1} << 30},
                                           {"Ti", int64_t{1} << 40}}};
constexpr std::array<Unit, 9> kByteUnits{{{"B", 1},
                                          {"kB", 1'000},
                                          {"MB", 1'000'000},
                                          {"GB", 1'000'000'000},
                                          {"TB", 1'000'000'000'000},
                                          {"KiB", int64_t{1} << 10},
                                          {"MiB", int64_t{1} << 20},
                                          {"GiB", int64_t{1} << 30},
                                          {"TiB", int64_t{1} << 40}}};
constexpr std::array<Unit, 4> kTimeUnits{{{"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}}};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of "[+-]digits[.digits][e[+-]digits]" at the front of `text`; 0 when it starts no number.
size_t number_length(std::string_view text) {
  const auto digits = [&](size_t from) {
    while (from < text.size() && is_digit(text[from])) ++from;
    return from;
  };
  const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  size_t end = digits(sign);
  size_t count = end - sign;
  if (end < text.size() && text[end] == '.') {
    const size_t fraction = digits(end + 1);
    count += fraction - end - 1;
    end = fraction;
  }
  if (count == 0) return 0;
  if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    size_t exponent = end + 1;
    if (exponent < text.size() && (text[exponent] == '-' || text[exponent] == '+')) ++exponent;
    if (digits(exponent) > exponent) end = digits(exponent);
  }
  return end;
}

// A decimal number as digits and a power of ten, so that "2.5B" is exact.
struct Decimal {
  bool negative = false;
  std::string digits;  // without leading or trailing zeros; empty = 0
  int64_t exponent = 0;
};

Decimal split_decimal(std::string_view number) {
  Decimal decimal;
  const size_t e = number.find_first_of("eE");
  if (e != std::string_view::npos) {
    std::string_view exponent = number.substr(e + 1);
    if (exponent.starts_with('+')) exponent.remove_prefix(1);
    // An exponent beyond int64 is clamped: the result overflows or is no whole number either way.
    const auto [end, error] = std::from_chars(exponent.data(), exponent.data() + exponent.size(), decimal.exponent);
    if (error != std::errc() || std::abs(decimal.exponent) > 1'000'000) {
      decimal.exponent = exponent.starts_with('-') ? -1'000'000 : 1'000'000;
    }
  }
  bool fraction = false;
  for (const char c : number.substr(0, e)) {
    if (c == '-') decimal.negative = true;
    if (c == '.') fraction = true;
    if (!is_digit(c)) continue;
    if (fraction) --decimal.exponent;
    if (c != '0' || !decimal.digits.empty()) decimal.digits += c;
  }
  while (decimal.digits.ends_with('0')) {
    decimal.digits.pop_back();
    ++decimal.exponent;
  }
  return decimal;
}

enum class Whole { kYes, kFraction, kOverflow };

// decimal * factor as an integer, without rounding.
Whole to_whole(const Decimal& decimal, int64_t factor, int64_t& value) {
  value = 0;
  if (decimal.digits.empty()) return Whole::kYes;
  if (decimal.exponent > 18) return Whole::kOverflow;
  // Divide the powers of ten out of the unit first (2s and 5s apart), then multiply.
  int64_t exponent = decimal.exponent;
  int64_t twos = exponent < 0 ? -exponent : 0;
  int64_t fives = twos;
  for (; twos > 0 && factor % 2 == 0; --twos) factor /= 2;
  for (; fives > 0 && factor % 5 == 0; --fives) factor /= 5;
  int64_t mantissa = 0;
  for (const char c : decimal.digits) {
    if (__builtin_mul_overflow(mantissa, 10, &mantissa) || __builtin_add_overflow(mantissa, c - '0', &mantissa)) {
      return decimal.exponent < 0 ? Whole::kFraction : Whole::kOverflow;
    }
  }
  for (; twos > 0 && mantissa % 2 == 0; --twos) mantissa /= 2;
  for (; fives > 0 && mantissa % 5 == 0; --fives) mantissa /= 5;
  if (twos > 0 || fives > 0) return Whole::kFraction;
  for (; exponent > 0; --exponent) {
    if (__builtin_mul_overflow(mantissa, 10, &mantissa)) return Whole::kOverflow;
  }
  if (__builtin_mul_overflow(mantissa, factor, &mantissa)) return Whole::kOverflow;
  value = decimal.negative ? -mantissa : mantissa;
  return Whole::kYes;
}

Parsed<int64_t> parse_with_units(std::string_view text, std::span<const Unit> units, std::string_view kind) {
  const size_t length = number_length(text);
  const std::string_view suffix = text.substr(length);
  const auto unit = std::find_if(units.begin(), units.end(), [&](const Unit& u) { return u.name == suffix; });
  if (length == 0 || (!suffix.empty() && unit == units.end())) {
    std::string names;
    for (const Unit& known : units) names += fmt::format(" {}", known.name);
    return fmt::format("expected {} (units:{})", kind, names);
  }
  const size_t first = text.find_first_of("0123456789");
  if (text[first] == '0' && first + 1 < text.size() && is_digit(text[first + 1])) {
    return std::string("a leading zero could mean octal; write the number without it");
  }
  int64_t value = 0;
  switch (to_whole(split_decimal(text.substr(0, length)), suffix.empty() ? 1 : unit->factor, value)) {
    case Whole::kFraction:
      return std::string("not a whole number");
    case Whole::kOverflow:
      return std::string("too large for a 64-bit integer");
    case Whole::kYes:
      break;
  }
  return value;
}

std::string with_unit(int64_t value, std::span<const Unit> units, std::string_view none) {
  for (const Unit& unit : units) {
    if (value != 0 && unit.factor > 1 && value % unit.factor == 0 && value / unit.factor < 1024) {
      return fmt::format("{}{}", value / unit.factor, unit.name);
    }
  }
  return fmt::format("{}{}", value, none);
}

}  // namespace

Parsed<bool> parse_bool(std::string_view text) {
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  for (const std::string_view yes : {"yes", "Yes", "YES", "on", "On", "ON", "y", "Y", "1"}) {
    if (text == yes) return std::string("expected true or false; write true");
  }
  for (const std::string_view no : {"no", "No", "NO", "off", "Off", "OFF", "n", "N", "0"}) {
    if (text == no) return std::string("expected true or false; write false");
  }
  return std::string("expected true or false");
}

Parsed<int64_t> parse_int(std::string_view text) {
  return parse_with_units(text, kCountUnits, "a whole number such as 1024, 512Ki or 2B");
}

Parsed<Bytes> parse_bytes(std::string_view text) {
  auto parsed = parse_with_units(text, kByteUnits, "a size such as 64GiB or 500MB");
  if (const int64_t* value = std::get_if<int64_t>(&parsed)) return Bytes{*value};
  return std::get<std::string>(parsed);
}

Parsed<double> parse_double(std::string_view text) {
  const std::string_view bare =
      text.substr(text.find_first_not_of("+-.") == std::string_view::npos ? 0 : text.find_first_not_of("+-."));
  for (const std::string_view word : {"inf", "Inf", "INF", "nan", "NaN", "NAN", "infinity"}) {
    if (bare == word) return std::string("must be a finite number");
  }
  if (text.empty() || number_length(text) != text.size()) return std::string("expected a number such as 0.1 or 3e-4");
  double value = 0;
  const char* start = text.data() + (text[0] == '+' ? 1 : 0);
  const auto [end, error] = std::from_chars(start, text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::string("outside the range of a 64-bit floating-point number");
  }
  return value;
}

Parsed<Duration> parse_duration(std::string_view text) {
  const std::string expected = "expected a time such as 45s, 30m, 2h, 1d or 1h30m";
  Duration total;
  if (text.empty()) return expected;
  for (bool first = true; !text.empty(); first = false) {
    const size_t length = number_length(text);
    if (length == 0) return expected;
    const auto number = parse_double(text.substr(0, length));
    if (!std::holds_alternative<double>(number)) return std::get<std::string>(number);
    text.remove_prefix(length);
    if (text.empty() && first) return Duration{std::get<double>(number)};
    const auto unit = std::find_if(kTimeUnits.begin(), kTimeUnits.end(),
                                   [&](const Unit& known) { return text.starts_with(known.name); });
    if (unit == kTimeUnits.end()) return expected;
    text.remove_prefix(unit->name.size());
    total.seconds += std::get<double>(number) * static_cast<double>(unit->factor);
  }
  if (!std::isfinite(total.seconds)) return std::string("too long");
  return total;
}

Parsed<StepCount> parse_steps(std::string_view text) {
  if (!text.ends_with('%')) {
    auto parsed = parse_int(text);
    if (const int64_t* value = std::get_if<int64_t>(&parsed)) return StepCount{*value, {}};
    return std::get<std::string>(parsed) + "; or a share of train.steps such as 1%";
  }
  const auto share = parse_double(text.substr(0, text.size() - 1));
  if (!std::holds_alternative<double>(share)) return std::get<std::string>(share);
  const double percent = std::get<double>(share);
  if (percent < 0 || percent > 100) return std::string("a share must be between 0% and 100%");
  return StepCount{0, percent / 100};
}

std::string format_value(bool value) { return value ? "true" : "false"; }
std::string format_value(int64_t value) { return fmt::format("{}", value); }

std::string format_value(double value) {
  std::string text = fmt::format("{}", value);
  // A whole number keeps its point, so that it is read as floating-point by other YAML readers too.
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  return text;
}

std::string format_value(Duration value) {
  const double seconds = value.seconds;
  if (seconds < 0 || seconds != std::floor(seconds) || seconds > 1e15) return fmt::format("{}s", seconds);
  for (const std::string_view name : {"d", "h", "m"}) {
    const auto unit = std::find_if(kTimeUnits.begin(), kTimeUnits.end(), [&](const Unit& u) { return u.name == name; });
    const int64_t whole = static_cast<int64_t>(seconds);
    if (whole > 0 && whole % unit->factor == 0) return fmt::format("{}{}", whole / unit->factor, name);
  }
  return fmt::format("{}s", seconds);
}

std::string format_value(StepCount value) {
  if (!value.share) return format_value(value.steps);
  // 100 * share may be one bit beside the percentage that was read; look for the one that divides back.
  const double percent = *value.share * 100;
  for (const double near : {percent, std::nextafter(percent, 0.0), std::nextafter(percent, 1e300)}) {
    if (near / 100 == *value.share) return fmt::format("{}%", near);
  }
  return fmt::format("{}%", percent);
}

std::string format_value(Bytes value) { return with_unit(value.bytes, std::span(kByteUnits).subspan(5), "B"); }

}  // namespace conclave::config
