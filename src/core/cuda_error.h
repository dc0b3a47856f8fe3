// SPDX-License-Identifier: Apache-2.0
// CUDA return codes as exceptions. For sources that only a CUDA build compiles; plain C++ so that .cu files compile
// fast.
#pragma once

namespace conclave::device {

// `code` is a cudaError_t. Throws Error with exit code 70 and what CUDA says about `call`, unless it is cudaSuccess;
// out of memory says so and what to do.
void must(int code, const char* call);

}  // namespace conclave::device
