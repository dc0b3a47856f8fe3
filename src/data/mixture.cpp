// SPDX-License-Identifier: Apache-2.0
#include "data/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace conclave::data {
namespace {

constexpr int64_t kLongestExactPeriod = 10'000;
constexpr int64_t kRoundedPeriod = 1 << 20;

double total_of(std::span<const double> weights) {
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!std::isfinite(weights[i]) || weights[i] < 0)
      throw ConfigError("data.train[{}].weight is {}; a weight is a number >= 0", i, weights[i]);
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  if (!std::isfinite(total)) throw ConfigError("the weights of data.train add up to infinity; use smaller numbers");
  if (total <= 0)
    throw ConfigError(
        "the weights of data.train add up to 0, so nothing can be drawn; give at least one source a weight");
  return total;
}

// Draws of each source in the shortest period that gives every share exactly; empty when there is none.
std::vector<int64_t> exact_counts(std::span<const double> weights, double total) {
  std::vector<int64_t> counts(weights.size());
  for (int64_t period = 1; period <= kLongestExactPeriod; ++period) {
    const auto whole = [&](double weight) {
      const double draws = weight / total * static_cast<double>(period);
      return std::abs(draws - std::round(draws)) < 1e-9 && (weight == 0 || draws > 0.5);
    };
    if (!std::all_of(weights.begin(), weights.end(), whole)) continue;
    for (size_t i = 0; i < weights.size(); ++i)
      counts[i] = std::llround(weights[i] / total * static_cast<double>(period));
    return counts;
  }
  return {};
}

// Largest remainders over a period of 2^20; every source with a weight gets at least one draw, taken from the largest.
std::vector<int64_t> rounded_counts(std::span<const double> weights, double total) {
  std::vector<int64_t> counts(weights.size());
  std::vector<double> remainders(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double draws = weights[i] / total * static_cast<double>(kRoundedPeriod);
    counts[i] = static_cast<int64_t>(draws);
    remainders[i] = draws - std::floor(draws);
    if (weights[i] > 0 && counts[i] == 0) counts[i] = 1, remainders[i] = 0;
  }
  int64_t left = kRoundedPeriod - std::accumulate(counts.begin(), counts.end(), int64_t{0});
  for (; left > 0; --left) {
    const auto most = std::max_element(remainders.begin(), remainders.end());
    ++counts[static_cast<size_t>(most - remainders.begin())];
    *most = 0;
  }
  for (; left < 0; ++left) --*std::max_element(counts.begin(), counts.end());
  return counts;
}

}  // namespace

Mixture::Mixture(std::span<const double> weights) {
  check(!weights.empty() && weights.size() < kRoundedPeriod / 2, "a mixture of 1 ... 2^19 sources");
  const double total = total_of(weights);
  counts_ = exact_counts(weights, total);
  if (counts_.empty()) counts_ = rounded_counts(weights, total);
  const int64_t period = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
  std::vector<int64_t> taken(weights.size());
  order_.reserve(static_cast<size_t>(period));
  for (int64_t n = 0; n < period; ++n) {
    // deficit = weight * max(n, 1) - taken, times the period so that it stays a whole number; the first of equals wins.
    size_t best = 0;
    int64_t largest = std::numeric_limits<int64_t>::min();
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t deficit = counts_[i] * std::max<int64_t>(n, 1) - taken[i] * period;
      if (taken[i] == counts_[i] || deficit <= largest) continue;
      largest = deficit;
      best = i;
    }
    order_.push_back({static_cast<int32_t>(best), static_cast<int32_t>(taken[best]++)});
  }
}

Mixture::Draw Mixture::at(int64_t n) const {
  check(n >= 0, "a sample number >= 0");
  const Slot slot = order_[static_cast<size_t>(n % period())];
  const auto source = static_cast<size_t>(slot.source);
  return {source, n / period() * counts_[source] + slot.rank};
}

int64_t Mixture::taken(size_t source, int64_t n) const {
  int64_t count = n / period() * counts_.at(source);
  for (int64_t i = 0; i < n % period(); ++i)
    count += order_[static_cast<size_t>(i)].source == static_cast<int32_t>(source);
  return count;
}

double Mixture::share(size_t source) const {
  return static_cast<double>(counts_.at(source)) / static_cast<double>(period());
}

}  // namespace conclave::data
