// SPDX-License-Identifier: Apache-2.0
#include "app/bench_numbers.h"

#include <algorithm>
#include <cmath>

namespace conclave::app {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.at(values.size() / 2);
}

double larger(double a, double b) { return b <= a || std::isnan(a) ? a : b; }

double largest_difference(const std::vector<double>& losses, const std::vector<double>& reference) {
  double worst = 0;
  for (size_t i = 0; i < losses.size(); ++i) worst = larger(worst, std::abs(losses[i] / reference.at(i) - 1));
  return worst;
}

}  // namespace conclave::app
