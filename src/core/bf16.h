// SPDX-License-Identifier: Apache-2.0
// bfloat16, the upper half of a float, for layers that know no tensors. The bits are those of LibTorch's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace conclave {

// Rounds to nearest even; what is not finite stays so.
inline uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bf16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

}  // namespace conclave
