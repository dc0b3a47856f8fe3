// SPDX-License-Identifier: Apache-2.0
// Where a kernel runs: on the CPU, or by a launcher of kernels/cuda. Which of two sources answers is chosen by the
// build (cuda/placement_cuda.cpp, cuda/no_placement.cpp); a third one in tests/cuda takes CPU tensors for device
// tensors, to run the launchers' kernels in an emulation.
#pragma once

#include "core/tensor.h"
#include "kernels/cuda/types.h"

namespace conclave::kernels {

// Whether the launchers of kernels/cuda work on this tensor's memory.
bool on_device(const Tensor& tensor);

// The stream on which ATen's next operation on the tensor's device will run. Only for tensors on the device.
cuda::Stream stream_of(const Tensor& tensor);

// Whether at::_grouped_mm is one kernel there that reads the groups' ends itself: for bf16 on GPUs of compute
// capability 9 and 10. Elsewhere it is a loop of products, for which it fetches the ends from the device.
bool has_grouped_product(const Tensor& tensor);

// Float or BFloat16.
cuda::Real real_of(const Tensor& tensor);

}  // namespace conclave::kernels
