// SPDX-License-Identifier: Apache-2.0
// The cross-polytope hash (Andoni et al. 2015, arXiv 1509.02897): which of the vectors ±e_i is nearest to Rx, that is
// argmax_i |(Rx)_i| and a sign. R = H S3 H S2 H S1 of that paper, random signs S and Hadamard's matrix H: an orthogonal
// matrix, up to a factor that no argmax sees, which takes P log P additions and 3 P bits where a drawn one takes P².
// Rows are filled up with zeros to P numbers, a power of two. Numbers close in angle often share a hash; length does
// not matter.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/random.h"

namespace conclave::moe {

class CrossPolytope {
 public:
  // Signs are drawn from `random`. Only the first `dimensions` of the P directions are looked at; all where absent.
  CrossPolytope(const Random& random, int64_t width, std::optional<int64_t> dimensions);

  int64_t size() const { return size_; }  // P
  // R times the row, P^1.5 times as long. `row_P` has P numbers.
  void rotate(std::span<double> row_P) const;
  // 2i, or 2i + 1 where the entry is negative; the lowest i of equal ones. Rotates `row_P` in place.
  int32_t nearest(std::span<double> row_P) const;

 private:
  static constexpr int kRounds = 3;

  int64_t size_, dimensions_;
  std::vector<double> signs_;  // [kRounds, P]
};

}  // namespace conclave::moe
