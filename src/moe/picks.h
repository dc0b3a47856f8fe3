// SPDX-License-Identifier: Apache-2.0
// Which experts each token of a micro-batch takes, before any drop: any number for each token, in the order of its
// preference. T tokens, C picks in all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace conclave::moe {

struct Picks {
  std::vector<int32_t> offsets_T1;  // picks of token t: offsets[t] ... offsets[t + 1]
  std::vector<int32_t> ids_C;       // experts

  int64_t tokens() const { return static_cast<int64_t>(offsets_T1.size()) - 1; }
  int64_t count() const { return static_cast<int64_t>(ids_C.size()); }
  std::span<const int32_t> of(int64_t token) const {
    return std::span(ids_C).subspan(offsets_T1[token], offsets_T1[token + 1] - offsets_T1[token]);
  }
  bool operator==(const Picks&) const = default;
};

// Equally many for each token.
Picks even_picks(std::vector<int32_t> ids_TK, int64_t tokens);

}  // namespace conclave::moe
