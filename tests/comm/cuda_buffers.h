// SPDX-License-Identifier: Apache-2.0
// Memory of the GPU in use, for tests that run where there is one. The build takes cuda_buffers.cpp with the cuda
// preset and no_cuda_buffers.cpp without it.
#pragma once

#include <memory>

#include "comm/staged_transport.h"

namespace conclave::test {

// On the default stream, where the transport takes the computation to be.
std::shared_ptr<DeviceBuffers> make_cuda_buffers();

}  // namespace conclave::test
