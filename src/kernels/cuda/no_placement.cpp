// SPDX-License-Identifier: Apache-2.0
// Compiled into builds without CUDA instead of placement_cuda.cpp: no tensor is on a device.
#include "kernels/placement.h"

namespace conclave::kernels {

bool on_device(const Tensor&) { return false; }

bool has_grouped_product(const Tensor&) { return false; }

cuda::Stream stream_of(const Tensor&) {
  check(false, "stream_of: built without CUDA");
  return nullptr;
}

}  // namespace conclave::kernels
