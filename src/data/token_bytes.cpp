// SPDX-License-Identifier: Apache-2.0
#include "data/token_bytes.h"

#include <bit>
#include <cstring>

#include "core/error.h"

namespace conclave::data {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian and read without swapping");

template <typename T>
T token_at(std::span<const std::byte> raw, size_t i) {
  T token;
  std::memcpy(&token, raw.data() + i * sizeof(T), sizeof(T));
  return token;
}

template <typename T>
std::optional<WrongToken> widen_as(std::span<const std::byte> raw, int64_t limit, std::span<int32_t> out) {
  bool all_good = true;  // no branch in the loop: it vectorises, and a wrong token is the exception
  for (size_t i = 0; i < out.size(); ++i) {
    const auto token = static_cast<int64_t>(token_at<T>(raw, i));
    all_good &= static_cast<uint64_t>(token) < static_cast<uint64_t>(limit);  // a negative one becomes huge
    out[i] = static_cast<int32_t>(token);
  }
  for (size_t i = 0; !all_good && i < out.size(); ++i) {
    const auto token = static_cast<int64_t>(token_at<T>(raw, i));
    if (token < 0 || token >= limit) return WrongToken{static_cast<int64_t>(i), token};
  }
  return std::nullopt;
}

}  // namespace

int64_t token_bytes(TokenType type) {
  switch (type) {
    case TokenType::kU8:
    case TokenType::kI8:
      return 1;
    case TokenType::kI16:
    case TokenType::kU16:
      return 2;
    case TokenType::kI32:
      return 4;
    case TokenType::kI64:
      return 8;
  }
  throw BugError("token type {} has no width", static_cast<int>(type));
}

std::optional<WrongToken> widen(TokenType type, std::span<const std::byte> raw, int64_t limit, std::span<int32_t> out) {
  check(raw.size() == out.size() * static_cast<size_t>(token_bytes(type)), "as many bytes as the tokens take");
  switch (type) {
    case TokenType::kU8:
      return widen_as<uint8_t>(raw, limit, out);
    case TokenType::kI8:
      return widen_as<int8_t>(raw, limit, out);
    case TokenType::kI16:
      return widen_as<int16_t>(raw, limit, out);
    case TokenType::kU16:
      return widen_as<uint16_t>(raw, limit, out);
    case TokenType::kI32:
      return widen_as<int32_t>(raw, limit, out);
    case TokenType::kI64:
      return widen_as<int64_t>(raw, limit, out);
  }
  throw BugError("token type {} cannot be read", static_cast<int>(type));
}

}  // namespace conclave::data
