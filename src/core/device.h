// SPDX-License-Identifier: Apache-2.0
// Which GPUs this process can use, and the one it does use. The build takes device_cuda.cpp with the cuda preset and
// no_device.cpp, which only says so, without it. Who computes where is decided in comm/device_choice.h.
#pragma once

#include <cstdint>
#include <string>

namespace conclave::device {

struct Availability {
  int count = 0;       // GPUs that can be used, numbered from 0
  std::string reason;  // why there is none, and what to do; empty when there are some
};

struct Memory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

// Looks at driver, GPUs and LibTorch's CUDA library. The first call that finds a GPU loads that library, which takes a
// second or two and stays; without a GPU it is not needed and not looked for. Throws nothing.
Availability available();

// From now on `index` is this thread's GPU, the one of an index-less "cuda" in LibTorch. available().count > index.
void use(int index);

// "NVIDIA H200, sm_90, 139.7 GiB".
std::string describe(int index);

// Of the GPU in use.
Memory memory();

}  // namespace conclave::device
