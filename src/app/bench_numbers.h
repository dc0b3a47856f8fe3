// SPDX-License-Identifier: Apache-2.0
// What benchmarks make of their measurements.
#pragma once

#include <vector>

namespace conclave::app {

// Of at least one; the upper one of two in the middle.
double median(std::vector<double> values);
// The largest |loss / reference - 1|; NaN where there is one.
double largest_difference(const std::vector<double>& losses, const std::vector<double>& reference);
// The larger of two differences, and NaN rather than a number.
double larger(double a, double b);

}  // namespace conclave::app
