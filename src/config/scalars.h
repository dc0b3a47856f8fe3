// SPDX-License-Identifier: Apache-2.0
// Text of single values to typed values and back. A reader returns the reason, for the message, when the text is not
// such a value; a writer gives the shortest text that reads back as the same value.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "config/types.h"

namespace conclave::config {

// The value, or why the text is none.
template <typename T>
using Parsed = std::variant<T, std::string>;

// true or false; YAML 1.1's yes, no, on and off are refused with a hint.
Parsed<bool> parse_bool(std::string_view text);
// Digits with an optional fraction, exponent and unit (k M B T, Ki Mi Gi Ti), as long as the result is whole and fits:
// 1e9, 2.5B, 512Ki. Exact, no rounding through double.
Parsed<int64_t> parse_int(std::string_view text);
Parsed<double> parse_double(std::string_view text);  // finite
Parsed<Duration> parse_duration(std::string_view text);
Parsed<StepCount> parse_steps(std::string_view text);
Parsed<Bytes> parse_bytes(std::string_view text);

std::string format_value(bool value);
std::string format_value(int64_t value);
std::string format_value(double value);
std::string format_value(Duration value);
std::string format_value(StepCount value);
std::string format_value(Bytes value);

}  // namespace conclave::config
