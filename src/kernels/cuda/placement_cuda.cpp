// SPDX-License-Identifier: Apache-2.0
// Compiled into CUDA builds instead of no_placement.cpp.
#include <c10/cuda/CUDAStream.h>

#include "kernels/placement.h"

namespace conclave::kernels {

bool on_device(const Tensor& tensor) { return tensor.is_cuda(); }

cuda::Stream stream_of(const Tensor& tensor) { return c10::cuda::getCurrentCUDAStream(tensor.get_device()).stream(); }

}  // namespace conclave::kernels
