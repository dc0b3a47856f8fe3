// SPDX-License-Identifier: Apache-2.0
// core/random.h on the device: the same words from the same key and id. Normal numbers are computed in fp64 like there;
// CUDA's logarithm and cosine may differ from the C library's in the last bit of the fp64, which rounding to fp32
// nearly always hides.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/optimizer.h"

namespace conclave::kernels::cuda {

struct PhiloxWords {
  uint32_t w[4];
};

// Philox4x32-10 (Salmon et al., SC 2011).
__device__ inline PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  auto& c = counter.w;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

__device__ inline double normal_of(const FillNormal& a, uint64_t id) {
  const PhiloxWords words =
      philox({{static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), a.high[0], a.high[1]}}, a.key[0], a.key[1]);
  const auto& w = words.w;
  const uint64_t first = static_cast<uint64_t>(w[1]) << 32 | w[0], second = static_cast<uint64_t>(w[3]) << 32 | w[2];
  const double u = (static_cast<double>(first >> 11) + 1.0) * 0x1.0p-53;  // (0, 1]
  const double v = static_cast<double>(second >> 11) * 0x1.0p-53;
  return sqrt(-2.0 * log(u)) * cos(2.0 * 3.14159265358979323846 * v);
}

}  // namespace conclave::kernels::cuda
