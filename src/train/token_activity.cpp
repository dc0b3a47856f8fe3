// SPDX-License-Identifier: Apache-2.0
#include "train/token_activity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace conclave::train {
namespace {

// Ranks from 1; equal values share the mean of theirs.
std::vector<double> ranks_of(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (size_t i = begin; i < end; ++i) ranks[order[i]] = (static_cast<double>(begin + end) + 1) / 2;
  }
  return ranks;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const double n = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / n,
               mean_b = std::accumulate(b.begin(), b.end(), 0.0) / n;
  double product = 0, squares_a = 0, squares_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    product += (a[i] - mean_a) * (b[i] - mean_b);
    squares_a += (a[i] - mean_a) * (a[i] - mean_a);
    squares_b += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return squares_a == 0 || squares_b == 0 ? 0 : product / std::sqrt(squares_a * squares_b);
}

}  // namespace

void TokenActivity::add(const Batch& batch, std::span<const moe::Decision* const> layers) {
  layers_ = std::ssize(layers);
  for (int64_t t = 0; t < batch.tokens_count(); ++t) {
    if (batch.segment_ids[t] < 0) continue;
    const int32_t word = batch.tokens[t];
    ++occurrences_V_.at(word);
    for (const moe::Decision* layer : layers) {
      const moe::Routing& routing = layer->routing;
      check(routing.tokens == batch.tokens_count(), "the rank routes all tokens of a micro-batch");
      experts_V_[word] += routing.token_offsets_T1[t + 1] - routing.token_offsets_T1[t];
    }
  }
}

void TokenActivity::reduce(const comm::Group& dp) {
  dp.all_reduce(std::span<int64_t>(occurrences_V_));
  dp.all_reduce(std::span<int64_t>(experts_V_));
}

double TokenActivity::mean_experts(int64_t word) const {
  return static_cast<double>(experts_V_[word]) /
         static_cast<double>(std::max<int64_t>(1, occurrences_V_[word] * layers_));
}

std::vector<TokenActivity::Band> TokenActivity::bands() const {
  std::vector<Band> all;
  const int64_t most = *std::max_element(occurrences_V_.begin(), occurrences_V_.end());
  for (int64_t from = 1; from <= most; from *= 4) {
    Band band{.from = from, .to = 4 * from};
    int64_t experts = 0;
    for (size_t v = 0; v < occurrences_V_.size(); ++v) {
      if (occurrences_V_[v] < from || occurrences_V_[v] >= band.to) continue;
      ++band.words;
      band.tokens += occurrences_V_[v];
      experts += experts_V_[v];
    }
    if (band.words == 0) continue;
    band.experts = static_cast<double>(experts) / static_cast<double>(std::max<int64_t>(1, band.tokens * layers_));
    all.push_back(band);
  }
  return all;
}

double TokenActivity::rank_correlation() const {
  std::vector<double> occurrences, experts;
  for (size_t v = 0; v < occurrences_V_.size(); ++v) {
    if (occurrences_V_[v] == 0) continue;
    occurrences.push_back(static_cast<double>(occurrences_V_[v]));
    experts.push_back(mean_experts(static_cast<int64_t>(v)));
  }
  return occurrences.empty() ? 0 : correlation(ranks_of(occurrences), ranks_of(experts));
}

}  // namespace conclave::train
