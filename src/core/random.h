// SPDX-License-Identifier: Apache-2.0
// Counter-based randomness: every draw is a pure function of (seed, purpose, step, layer, global id), so ranks,
// threads, recomputation and resume never change one. Philox4x32-10 (Salmon et al., SC 2011).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace conclave {

enum class Purpose : uint32_t {
  kInit = 1,
  kShuffle = 2,
  kMixture = 3,
  kRouterNoise = 4,
  kDropOrder = 5,
  kSample = 6,
  kTest = 7,
  kRouterJitter = 8,
  kRouterSecond = 9,
  kHashTable = 12,
  kRouterSample = 13,
  kExpertDropout = 14,
  kRowHash = 15,
};

// One block of Philox4x32-10: four words from a 128-bit counter and a 64-bit key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A stream of draws indexed by id. Cheap to make; holds no state.
class Random {
 public:
  Random(uint64_t seed, Purpose purpose, uint64_t step = 0, uint32_t layer = 0);
  // The stream of one named thing (a parameter): `name` takes the place of step and layer.
  Random(uint64_t seed, Purpose purpose, std::string_view name);

  std::array<uint32_t, 4> words(uint64_t id) const;
  uint64_t bits(uint64_t id) const;
  double uniform(uint64_t id) const;  // [0, 1), 53 bits
  double normal(uint64_t id) const;   // mean 0, variance 1 (Box-Muller)

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> high_;
};

}  // namespace conclave
