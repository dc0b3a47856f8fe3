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

Picks kept_picks(const Picks& picks, std::span<const uint8_t> keep_C, std::vector<int32_t>* from) {
  Picks kept;
  kept.offsets_T1.push_back(0);
  for (int64_t t = 0; t < picks.tokens(); ++t) {
    for (int32_t i = picks.offsets_T1[t]; i < picks.offsets_T1[t + 1]; ++i) {
      if (!keep_C[i]) continue;
      kept.ids_C.push_back(picks.ids_C[i]);
      if (from != nullptr) from->push_back(i);
    }
    kept.offsets_T1.push_back(static_cast<int32_t>(kept.ids_C.size()));
  }
  return kept;
}

}  // namespace conclave::moe
