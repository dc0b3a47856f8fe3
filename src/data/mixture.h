// SPDX-License-Identifier: Apache-2.0
// Which source the n-th sample of the run comes from, and its number within that source: the greedy largest-deficit
// order of Megatron's blended dataset over one period, then repeated, so that any n costs two table reads. No
// randomness, no state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace conclave::data {

class Mixture {
 public:
  struct Draw {
    size_t source;
    int64_t sample;  // how many samples of this source came before
    bool operator==(const Draw&) const = default;
  };

  // Weights are relative; a source of weight 0 is never drawn. Shares are exact where a period of at most 10,000
  // samples makes them whole numbers, and otherwise rounded to multiples of 2^-20 (at least one). Throws ConfigError
  // for a negative or non-finite weight, or when all are 0.
  explicit Mixture(std::span<const double> weights);

  Draw at(int64_t n) const;
  // Samples of `source` among the first n of the run.
  int64_t taken(size_t source, int64_t n) const;
  // The share of each source as it is drawn; sums to 1.
  double share(size_t source) const;
  int64_t period() const { return static_cast<int64_t>(order_.size()); }

 private:
  struct Slot {
    int32_t source;
    int32_t rank;  // draws of the same source before this one in the period
  };
  std::vector<int64_t> counts_;  // per source, in one period
  std::vector<Slot> order_;
};

}  // namespace conclave::data
