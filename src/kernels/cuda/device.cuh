// SPDX-License-Identifier: Apache-2.0
// What device code takes from CUDA beyond the language: launching, shared memory, rounding to bf16. The only file here
// that tests replace, by tests/cuda/emulated/kernels/cuda/device.cuh, to run all the others on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>

#include "kernels/cuda/types.h"

namespace conclave::kernels::cuda {

struct Shape {
  int64_t blocks;  // none: nothing is launched
  int threads;     // whole warps
  size_t shared_bytes = 0;
};

// The block's shared memory, Shape::shared_bytes of it, not initialised.
template <typename T>
__device__ inline T* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

// To nearest, ties to even; NaN stays NaN.
__device__ inline uint16_t bf16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Queues the kernel on the stream. Throws BugError if CUDA refuses it, for this or for an earlier kernel's fault.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Shape& shape, Stream stream,
            const Arguments&... arguments) {
  if (shape.blocks == 0) return;
  std::tuple<Parameters...> values(arguments...);
  const cudaError_t status = std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(shape.blocks)),
                                dim3(static_cast<unsigned>(shape.threads)), pointers, shape.shared_bytes, stream);
      },
      values);
  if (status == cudaSuccess) return;
  cudaGetLastError();  // read here, so that nobody else takes the blame
  refuse_launch(name, cudaGetErrorString(status));
}

}  // namespace conclave::kernels::cuda
