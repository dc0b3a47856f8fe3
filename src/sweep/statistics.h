// SPDX-License-Identifier: Apache-2.0
// The few numbers by which runs with several seeds are compared.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave::sweep {

struct Summary {
  size_t count = 0;
  double mean = 0;
  double error = 0;  // standard error of the mean, deviation over n - 1; 0 for fewer than two values
};
Summary summarise(std::span<const double> values);

// Mean of a[i] - b[i] and the interval that holds the true mean with 95 % under normal differences (Student's t). The
// interval is empty (low > high) for fewer than two pairs.
struct Difference {
  size_t pairs = 0;
  double mean = 0;
  double low = 1, high = 0;

  bool has_interval() const { return low <= high; }
};
Difference paired_difference(std::span<const double> a, std::span<const double> b);

// The 97.5 % quantile of Student's t; `freedom` from 1.
double student_t(int64_t freedom);

}  // namespace conclave::sweep
