// SPDX-License-Identifier: Apache-2.0
#include "moe/picks.h"

namespace conclave::moe {

Picks even_picks(std::vector<int32_t> ids_TK, int64_t tokens) {
  const int64_t k = tokens == 0 ? 0 : static_cast<int64_t>(ids_TK.size()) / tokens;
  Picks picks;
  for (int64_t t = 0; t <= tokens; ++t) picks.offsets_T1.push_back(static_cast<int32_t>(t * k));
  picks.ids_C = std::move(ids_TK);
  return picks;
}

}  // namespace conclave::moe
