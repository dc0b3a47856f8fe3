// SPDX-License-Identifier: Apache-2.0
// A random order of 0 ... size-1 that is computed entry by entry and never stored: a Feistel network over Philox,
// walked until it lands inside the range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Not for
// secrets.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/random.h"

namespace conclave::data {

// Changes whenever the same seed would give another order; part of the data fingerprint.
inline constexpr int kShuffleVersion = 1;

class Permutation {
 public:
  // The order of epoch `epoch` of the source `name`; size >= 1. Another seed, name or epoch gives an unrelated order.
  Permutation(uint64_t seed, std::string_view name, uint64_t epoch, int64_t size);

  // The entry at `index` (0 ... size-1); each value 0 ... size-1 appears exactly once.
  int64_t operator()(int64_t index) const;

 private:
  uint64_t encrypt(uint64_t value) const;

  Random rounds_;
  uint64_t size_;
  int half_bits_ = 1;
};

}  // namespace conclave::data
