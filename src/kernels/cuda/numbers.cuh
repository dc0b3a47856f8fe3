// SPDX-License-Identifier: Apache-2.0
// Reading and writing numbers of either type as fp32, several at a time: a thread that moves 16 bytes at once reaches
// the memory's bandwidth, one that moves 2 does not.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/cuda/device.cuh"

namespace conclave::kernels::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, Bf16& to) { to.bits = bf16_bits(x); }

constexpr int pack_alignment(int bytes) { return bytes < 16 ? bytes : 16; }

// `kWidth` neighbours, moved by as few instructions as their size allows.
template <typename T, int kWidth>
struct alignas(pack_alignment(kWidth* static_cast<int>(sizeof(T)))) Pack {
  T values[kWidth];
};

template <int kWidth, typename T>
__device__ inline void load(const T* from, float (&to)[kWidth]) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(from);
  for (int i = 0; i < kWidth; ++i) to[i] = widen(pack.values[i]);
}

template <int kWidth, typename T>
__device__ inline void store(const float (&from)[kWidth], T* to) {
  Pack<T, kWidth> pack;
  for (int i = 0; i < kWidth; ++i) narrow(from[i], pack.values[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Calls body with a zero of the C++ type.
template <typename Body>
void with_real(Real real, const Body& body) {
  if (real == Real::kBf16) {
    body(Bf16{});
  } else {
    body(float{});
  }
}

// Calls body(T{}, width): how many neighbours a thread moves at a time, a compile-time constant: 16 bytes' worth of T
// where rows of n elements that begin at `pointers` allow it, else 1.
template <typename Body>
void with_width(Real real, int64_t n, std::initializer_list<const void*> pointers, const Body& body) {
  with_real(real, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
    bool whole = n % kWidth == 0;
    for (const void* pointer : pointers) whole = whole && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    if (whole) {
      body(zero, std::integral_constant<int, kWidth>{});
    } else {
      body(zero, std::integral_constant<int, 1>{});
    }
  });
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace conclave::kernels::cuda
