// SPDX-License-Identifier: Apache-2.0
#include "moe/stand_ins.h"

#include <algorithm>
#include <map>

namespace conclave::moe {
namespace {

using Tokens = std::vector<int64_t>;

// One computation serves all tokens with the same experts.
std::map<std::vector<int32_t>, Tokens> tokens_by_experts(const Picks& picks, const Tokens& tokens) {
  std::map<std::vector<int32_t>, Tokens> groups;
  for (const int64_t t : tokens) {
    const auto ids = picks.of(t);
    std::vector<int32_t> experts(ids.begin(), ids.end());
    std::sort(experts.begin(), experts.end());
    groups[std::move(experts)].push_back(t);
  }
  return groups;
}

// Of each expert: the sum of the known outputs, and how many outputs there are.
struct Sums {
  std::vector<double> sums_ED;
  std::vector<int64_t> counts_E;
};

// Over tokens that share an expert with `chosen`, of the experts that are not among these.
template <typename T>
Sums sums_for(const StandIns& in, const Tokens& tokens, const std::vector<int32_t>& chosen) {
  const int64_t E = in.choice.experts, D = in.rows_ND.size(1);
  const auto rows = elements<T>(in.rows_ND);
  Sums sums{std::vector<double>(E * D, 0.0), std::vector<int64_t>(E, 0)};
  std::vector<bool> is_chosen(E, false);
  for (const int32_t e : chosen) is_chosen[e] = true;
  const Picks& picks = in.choice.picks;
  for (const int64_t u : tokens) {
    const auto ids = picks.of(u);
    if (std::none_of(ids.begin(), ids.end(), [&](int32_t e) { return is_chosen[e]; })) continue;
    for (int32_t i = picks.offsets_T1[u]; i < picks.offsets_T1[u + 1]; ++i) {
      const int32_t e = picks.ids_C[i];
      if (is_chosen[e]) continue;
      ++sums.counts_E[e];
      if (in.row_of_C[i] < 0) continue;
      const T* row = &rows[in.row_of_C[i] * D];
      for (int64_t d = 0; d < D; ++d) sums.sums_ED[e * D + d] += row[d];
    }
  }
  return sums;
}

template <typename T>
void write_for(const Sums& sums, std::span<const T> dy_D, std::span<T> products_E) {
  const size_t D = dy_D.size();
  for (size_t e = 0; e < products_E.size(); ++e) {
    if (sums.counts_E[e] == 0) continue;
    double product = 0;
    for (size_t d = 0; d < D; ++d) product += static_cast<double>(dy_D[d]) * sums.sums_ED[e * D + d];
    products_E[e] = static_cast<T>(product / static_cast<double>(sums.counts_E[e]));
  }
}

}  // namespace

void StandIns::write_products(int64_t sequence, Tensor& products_TE) const {
  Tokens tokens;
  for (int64_t t = sequence * batch.length; t < (sequence + 1) * batch.length; ++t)
    if (batch.segment_ids[t] >= 0) tokens.push_back(t);
  const int64_t E = choice.experts, D = dy_TD.size(1);
  by_dtype(dy_TD, [&](auto zero) {
    using T = decltype(zero);
    const std::span<const T> dy = elements<T>(dy_TD);
    const std::span<T> products = elements<T>(products_TE);
    for (const auto& [chosen, alike] : tokens_by_experts(choice.picks, tokens)) {
      const Sums sums = sums_for<T>(*this, tokens, chosen);
      for (const int64_t t : alike) write_for<T>(sums, dy.subspan(t * D, D), products.subspan(t * E, E));
    }
  });
}

}  // namespace conclave::moe
