// SPDX-License-Identifier: Apache-2.0
#include "moe/gumbel.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

namespace conclave::moe {

std::vector<int32_t> gumbel_draws(const Tensor& logits_TE, const RouteInput& in, Purpose purpose,
                                  std::span<const int32_t> without) {
  const Random random = in.moment.random(purpose);
  const int64_t T = logits_TE.size(0), E = logits_TE.size(1);
  std::vector<int32_t> drawn(T);
  by_dtype(logits_TE, [&](auto zero) {
    const std::span<const decltype(zero)> logits = elements<decltype(zero)>(logits_TE);
    at::parallel_for(0, T, 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        double most = -std::numeric_limits<double>::infinity();
        drawn[t] = !without.empty() && without[t] == 0 && E > 1 ? 1 : 0;  // where no logit is a number
        for (int64_t e = 0; e < E; ++e) {
          if (!without.empty() && e == without[t]) continue;
          const double u = random.uniform(in.batch.global_token_ids[t] * E + e);
          const double value = double{logits[t * E + e]} - std::log(-std::log(u));
          if (value > most) most = value, drawn[t] = static_cast<int32_t>(e);
        }
      }
    });
  });
  return drawn;
}

}  // namespace conclave::moe
