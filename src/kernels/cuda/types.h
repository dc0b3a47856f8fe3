// SPDX-License-Identifier: Apache-2.0
// What the declarations of device kernels need to know of CUDA: nothing but these names, so that they compile anywhere.
// All pointers given to launchers point to memory of the stream's device; a launcher returns before its kernel ran.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace conclave::kernels::cuda {

using Stream = CUstream_st*;

// The numbers behind the `void*` of a launcher's arguments. Arithmetic is fp32 in both cases.
enum class Real { kFp32, kBf16 };

// A bf16 as memory holds it.
struct Bf16 {
  uint16_t bits;
};

// Throws BugError: the launch of `kernel` was refused, `why` in CUDA's words.
[[noreturn]] void refuse_launch(const char* kernel, const char* why);

}  // namespace conclave::kernels::cuda
