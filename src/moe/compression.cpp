// SPDX-License-Identifier: Apache-2.0
#include "moe/compression.h"

#include <algorithm>
#include <array>

#include "core/error.h"

namespace conclave::moe {

// One for each file in compressors/.
Compressor::Row lsh_compressor();

std::span<const Compressor::Row> Compressor::table() {
  static const std::array rows{lsh_compressor()};
  return rows;
}

const Compressor::Row& Compressor::row(CompressionType type) {
  const auto rows = table();
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.type == type; });
  check(found != rows.end(), "every compression has a row");
  return *found;
}

}  // namespace conclave::moe
