// SPDX-License-Identifier: Apache-2.0
#include "comm/cuda_buffers.h"
#include "core/error.h"

namespace conclave::test {

std::shared_ptr<DeviceBuffers> make_cuda_buffers() {
  throw BugError("internal error: a test without CUDA asks for GPU memory");
}

}  // namespace conclave::test
