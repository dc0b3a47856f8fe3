// SPDX-License-Identifier: Apache-2.0
#include "moe/statistics.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <numeric>

namespace conclave::moe {
namespace {

struct SequenceSums {
  double lse_squared = 0, entropy = 0;
};

// One sequence, tokens in order: the same bits on any number of threads.
template <typename T>
SequenceSums add_affinities(const Choice& choice, const Batch& batch, int64_t sequence, std::span<double> affinity_E) {
  const int64_t E = static_cast<int64_t>(affinity_E.size());
  const auto probs = elements<T>(choice.probs_TE);
  const auto lse = choice.lse_T.defined() ? elements<T>(choice.lse_T) : std::span<T>();
  SequenceSums sums;
  for (int64_t t = sequence * batch.length; t < (sequence + 1) * batch.length; ++t) {
    if (batch.segment_ids[t] < 0) continue;
    double total = 1.0;
    if (choice.affinity == Affinity::kNormalised) {
      total = 0;
      for (int64_t e = 0; e < E; ++e) total += probs[t * E + e];
    }
    for (int64_t e = 0; e < E; ++e) {
      const double p = total > 0 ? probs[t * E + e] / total : 0.0;
      affinity_E[e] += p;
      if (p > 0) sums.entropy -= p * std::log(p);
    }
    if (!lse.empty()) sums.lse_squared += static_cast<double>(lse[t]) * lse[t];
  }
  return sums;
}

void count_choices(const Choice& choice, const Batch& batch, RouterStatistics& s) {
  for (int64_t t = 0; t < batch.tokens_count(); ++t) {
    s.targets_B[t / batch.length] += batch.loss_mask[t];
    if (batch.segment_ids[t] < 0) continue;
    ++s.tokens_B[t / batch.length];
    for (int32_t i = choice.picks.offsets_T1[t]; i < choice.picks.offsets_T1[t + 1]; ++i)
      s.selected_E[choice.wanted().ids_C[i]] += choice.declined_C.empty() || !choice.declined_C[i];
    const int64_t row = t / batch.length * s.experts;
    const auto counted = choice.counted().of(t);
    for (const int32_t id : counted) ++s.chosen_BE[row + id];
    if (!counted.empty()) ++s.first_BE[row + counted[0]];
  }
}

}  // namespace

int64_t RouterStatistics::tokens() const { return std::accumulate(tokens_B.begin(), tokens_B.end(), int64_t{0}); }

double RouterStatistics::targets() const { return std::accumulate(targets_B.begin(), targets_B.end(), 0.0); }

RouterStatistics gather_statistics(const Choice& choice, const Routing& dispatched, const Batch& batch, int64_t top_k) {
  RouterStatistics s;
  s.experts = choice.experts;
  s.home = choice.home;
  s.sequences = batch.sequences;
  s.top_k = top_k;
  s.tokens_B.assign(s.sequences, 0);
  s.targets_B.assign(s.sequences, 0.0);
  s.chosen_BE.assign(s.sequences * s.experts, 0);
  s.first_BE.assign(s.sequences * s.experts, 0);
  s.affinity_BE.assign(s.sequences * s.experts, 0.0);
  s.selected_E.assign(s.experts, 0);
  s.dispatched_E.assign(dispatched.experts(), 0);
  count_choices(choice, batch, s);
  for (int64_t e = 0; e < dispatched.experts(); ++e)
    s.dispatched_E[e] = dispatched.offsets_E1[e + 1] - dispatched.offsets_E1[e];
  s.dropped = dispatched.dropped;
  s.sums = choice.sums;
  if (choice.affinity == Affinity::kNone) return s;
  std::vector<SequenceSums> sums(s.sequences);
  by_dtype(choice.probs_TE, [&](auto zero) {
    at::parallel_for(0, s.sequences, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const auto row = std::span(s.affinity_BE).subspan(b * s.experts, s.experts);
        sums[b] = add_affinities<decltype(zero)>(choice, batch, b, row);
      }
    });
  });
  for (const auto& sum : sums) s.lse_squared += sum.lse_squared, s.entropy += sum.entropy;
  return s;
}

}  // namespace conclave::moe
