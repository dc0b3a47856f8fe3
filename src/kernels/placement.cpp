// SPDX-License-Identifier: Apache-2.0
#include "kernels/placement.h"

#include "core/error.h"

namespace conclave::kernels {

cuda::Real real_of(const Tensor& tensor) {
  check(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16, "a tensor of float or bf16");
  return tensor.scalar_type() == at::kBFloat16 ? cuda::Real::kBf16 : cuda::Real::kFp32;
}

namespace cuda {

void refuse_launch(const char* kernel, const char* why) {
  throw BugError(
      "internal error: kernel {}: CUDA refused the launch: {}. If the log shows no earlier error, run "
      "compute-sanitizer on the step",
      kernel, why);
}

}  // namespace cuda
}  // namespace conclave::kernels
