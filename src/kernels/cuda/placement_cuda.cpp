// SPDX-License-Identifier: Apache-2.0
// Compiled into CUDA builds instead of no_placement.cpp.
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "kernels/placement.h"

namespace conclave::kernels {

bool on_device(const Tensor& tensor) { return tensor.is_cuda(); }

bool has_grouped_product(const Tensor& tensor) {
  if (!tensor.is_cuda() || tensor.scalar_type() != at::kBFloat16) return false;
  int major = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, tensor.get_device());
  if (status != cudaSuccess) cuda::refuse_launch("grouped product", cudaGetErrorString(status));
  return major == 9 || major == 10;
}

cuda::Stream stream_of(const Tensor& tensor) { return c10::cuda::getCurrentCUDAStream(tensor.get_device()).stream(); }

}  // namespace conclave::kernels
