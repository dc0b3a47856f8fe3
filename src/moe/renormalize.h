// SPDX-License-Identifier: Apache-2.0
// Weights of one token's surviving pairs divided by their sum, times r (DeepSpeed's order: normalise after the drop).
#pragma once

#include "moe/routing.h"

namespace conclave::moe {

struct Survivors {
  const Routing& routing;
  double scale;

  // `weights_C` of all picks, `pairs_N` of the kept pairs.
  template <typename T>
  void normalize(std::span<const T> weights_C, std::span<T> pairs_N) const {
    for (int64_t t = 0; t < routing.tokens; ++t) {
      const T total = sum(t, weights_C);
      for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1] && total > 0; ++i)
        pairs_N[routing.token_rows_N[i]] *= static_cast<T>(scale) / total;
    }
  }
  // w' = r w / Σw over survivors, so dw = (r dw' − Σ dw' w') / Σw.
  template <typename T>
  void differentiate(std::span<const T> weights_C, std::span<const T> dpairs_N, std::span<T> dweights_C) const {
    const T r = static_cast<T>(scale);
    for (int64_t t = 0; t < routing.tokens; ++t) {
      const T total = sum(t, weights_C);
      if (total <= 0) continue;
      T inner = 0;
      for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1]; ++i) {
        const int32_t n = routing.token_rows_N[i];
        inner += dpairs_N[n] * r * weights_C[routing.picks_N[n]] / total;
      }
      for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1]; ++i) {
        const int32_t n = routing.token_rows_N[i];
        dweights_C[routing.picks_N[n]] = (r * dpairs_N[n] - inner) / total;
      }
    }
  }

 private:
  template <typename T>
  T sum(int64_t t, std::span<const T> weights_C) const {
    T sum = 0;
    for (int32_t i = routing.token_offsets_T1[t]; i < routing.token_offsets_T1[t + 1]; ++i)
      sum += weights_C[routing.picks_N[routing.token_rows_N[i]]];
    return sum;
  }
};

}  // namespace conclave::moe
