// SPDX-License-Identifier: Apache-2.0
#include "moe/routing.h"

namespace conclave::moe {

Routing make_routing(std::span<const int32_t> ids_TK, std::span<const uint8_t> keep_TK, int64_t tokens,
                     int64_t num_experts) {
  const int64_t k = tokens == 0 ? 0 : static_cast<int64_t>(ids_TK.size()) / tokens;
  Routing routing;
  routing.tokens = tokens;
  routing.offsets_E1.assign(num_experts + 1, 0);
  for (size_t i = 0; i < ids_TK.size(); ++i) routing.offsets_E1[ids_TK[i] + 1] += keep_TK[i];
  for (int64_t e = 0; e < num_experts; ++e) routing.offsets_E1[e + 1] += routing.offsets_E1[e];
  const int32_t pairs = routing.offsets_E1[num_experts];
  routing.rows_N.resize(pairs);
  routing.choices_N.resize(pairs);
  routing.token_offsets_T1.assign(tokens + 1, 0);
  routing.token_rows_N.reserve(pairs);
  // Walking tokens in order makes the sort stable: pairs of an expert stay in token order.
  std::vector<int32_t> next(routing.offsets_E1.begin(), routing.offsets_E1.end() - 1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < k; ++j) {
      if (!keep_TK[t * k + j]) continue;
      const int32_t n = next[ids_TK[t * k + j]]++;
      routing.rows_N[n] = static_cast<int32_t>(t);
      routing.choices_N[n] = static_cast<int32_t>(j);
      routing.token_rows_N.push_back(n);
    }
    routing.token_offsets_T1[t + 1] = static_cast<int32_t>(routing.token_rows_N.size());
  }
  return routing;
}

}  // namespace conclave::moe
