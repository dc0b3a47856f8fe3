// SPDX-License-Identifier: Apache-2.0
// Stands for src/kernels/cuda/device.cuh where its kernels are compiled for the CPU: found first by the include path.
#pragma once

#include <math.h>

#include <cstddef>
#include <tuple>

#include "cuda/emulation.h"
#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct Shape {
  int64_t blocks;
  int threads;
  size_t shared_bytes = 0;
};

template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulation::shared_memory());
}

inline uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(0x7fff);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Shape& shape, Stream stream,
            const Arguments&... arguments) {
  if (shape.blocks == 0) return;
  const std::tuple<Parameters...> values(arguments...);
  emulation::run({name, shape.blocks, shape.threads, shape.shared_bytes}, [&] { std::apply(kernel, values); });
}

}  // namespace conclave::kernels::cuda
