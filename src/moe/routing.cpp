// SPDX-License-Identifier: Apache-2.0
#include "moe/routing.h"

namespace conclave::moe {

Routing make_routing(const Picks& picks, std::span<const uint8_t> keep_C, TokenRange own, int64_t num_experts) {
  const int32_t begin = picks.offsets_T1[own.first], end = picks.offsets_T1[own.first + own.count];
  Routing routing;
  routing.tokens = own.count;
  routing.offsets_E1.assign(num_experts + 1, 0);
  for (int32_t i = begin; i < end; ++i)
    if (keep_C[i]) ++routing.offsets_E1[picks.ids_C[i] + 1];
  for (int64_t e = 0; e < num_experts; ++e) routing.offsets_E1[e + 1] += routing.offsets_E1[e];
  const int32_t pairs = routing.offsets_E1[num_experts];
  routing.rows_N.resize(pairs);
  routing.picks_N.resize(pairs);
  routing.token_offsets_T1.assign(own.count + 1, 0);
  routing.token_rows_N.reserve(pairs);
  // Walking tokens in order makes the sort stable: pairs of an expert stay in token order.
  std::vector<int32_t> next(routing.offsets_E1.begin(), routing.offsets_E1.end() - 1);
  for (int64_t t = 0; t < own.count; ++t) {
    for (int32_t i = picks.offsets_T1[own.first + t]; i < picks.offsets_T1[own.first + t + 1]; ++i) {
      if (!keep_C[i]) continue;
      const int32_t n = next[picks.ids_C[i]]++;
      routing.rows_N[n] = static_cast<int32_t>(t);
      routing.picks_N[n] = i;
      routing.token_rows_N.push_back(n);
    }
    routing.token_offsets_T1[t + 1] = static_cast<int32_t>(routing.token_rows_N.size());
  }
  return routing;
}

}  // namespace conclave::moe
