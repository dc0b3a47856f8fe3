// SPDX-License-Identifier: Apache-2.0
#include "moe/dense_gradient.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>

namespace conclave::moe {
namespace {

// Of one token: what the weight of each expert gains.
template <typename T>
void collect_gains(const Choice& choice, std::span<const T> dweights, int64_t t, std::span<T> gains) {
  for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
    gains[choice.picks.ids_C[i]] = dweights[i];
}

}  // namespace

Tensor dense_gradient(const Choice& choice, const Tensor& dweights_C, const Tensor& others_TE, double scale) {
  Tensor dlogits = at::empty_like(choice.probs_TE);
  const int64_t E = choice.experts;
  by_dtype(dlogits, [&](auto zero) {
    using T = decltype(zero);
    const std::span<const T> dweights = elements<T>(dweights_C), probs = elements<T>(choice.probs_TE);
    const std::span<const T> others = others_TE.defined() ? elements<T>(others_TE) : std::span<T>();
    const auto dz = elements<T>(dlogits);
    std::vector<T> a(E);
    for (int64_t t = 0; t < choice.tokens(); ++t) {
      for (int64_t e = 0; e < E; ++e) a[e] = others.empty() ? T{0} : others[t * E + e];
      collect_gains<T>(choice, dweights, t, a);
      const std::span<const T> p = probs.subspan(t * E, E);
      T inner = 0;
      for (int64_t e = 0; e < E; ++e) inner += p[e] * a[e];
      for (int64_t e = 0; e < E; ++e) dz[t * E + e] = static_cast<T>(scale) * p[e] * (a[e] - inner);
    }
  });
  return dlogits;
}

}  // namespace conclave::moe
