// SPDX-License-Identifier: Apache-2.0
// Squared coefficient of variation over experts, CV² = var / (mean² + 1e-10), population variance, and its gradient
// (methods.md 1.1).
#pragma once

#include <vector>

namespace conclave::moe {

struct Variation {
  double value = 0;
  std::vector<double> gradient;  // d CV² / d value of each expert
};

inline Variation squared_variation(const std::vector<double>& values) {
  constexpr double kTiny = 1e-10;
  const auto n = static_cast<double>(values.size());
  double mean = 0, variance = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) variance += (v - mean) * (v - mean) / n;
  const double below = mean * mean + kTiny;
  Variation result{variance / below, {}};
  for (const double v : values)
    result.gradient.push_back(2 * (v - mean) / (n * below) - 2 * variance * mean / (n * below * below));
  return result;
}

}  // namespace conclave::moe
