// SPDX-License-Identifier: Apache-2.0
#include "sweep/statistics.h"

#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace conclave::sweep {

Summary summarise(std::span<const double> values) {
  Summary summary;
  summary.count = values.size();
  if (values.empty()) return summary;
  const auto n = static_cast<double>(values.size());
  summary.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() < 2) return summary;
  double squares = 0;
  for (const double value : values) squares += (value - summary.mean) * (value - summary.mean);
  summary.error = std::sqrt(squares / (n - 1) / n);
  return summary;
}

Difference paired_difference(std::span<const double> a, std::span<const double> b) {
  check(a.size() == b.size(), "differences need pairs");
  std::vector<double> differences;
  for (size_t i = 0; i < a.size(); ++i) differences.push_back(a[i] - b[i]);
  const Summary summary = summarise(differences);
  Difference result{summary.count, summary.mean};
  if (summary.count < 2) return result;
  const double half = student_t(static_cast<int64_t>(summary.count) - 1) * summary.error;
  result.low = summary.mean - half;
  result.high = summary.mean + half;
  return result;
}

double student_t(int64_t freedom) {
  constexpr std::array kTable{12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
                              2.2010,  2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
                              2.0796,  2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423};
  check(freedom >= 1, "Student's t needs a degree of freedom");
  if (freedom <= static_cast<int64_t>(kTable.size())) return kTable[static_cast<size_t>(freedom) - 1];
  // Cornish-Fisher expansion around the normal quantile: right to four digits from here on.
  constexpr double z = 1.959964;
  const auto n = static_cast<double>(freedom);
  return z + (z * z * z + z) / (4 * n) + (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * n * n);
}

}  // namespace conclave::sweep
