// SPDX-License-Identifier: Apache-2.0
// From the bytes of a token file to int32 ids, checked against the vocabulary. No files here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "data/indexed_dataset.h"

namespace conclave::data {

struct WrongToken {
  int64_t position;  // index within `out`
  int64_t token;
};

// Widens `raw` (out.size() little-endian values of `type`) into `out`. Returns the first one outside 0 ... limit-1, if
// any; `out` is then only filled before it. limit <= 2^31.
std::optional<WrongToken> widen(TokenType type, std::span<const std::byte> raw, int64_t limit, std::span<int32_t> out);

}  // namespace conclave::data
