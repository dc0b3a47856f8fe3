// SPDX-License-Identifier: Apache-2.0
#include "train/host_copies.h"

#include <ATen/ops/empty.h>

namespace conclave::train {

Tensor HostCopies::of(const Tensor& tensor) {
  if (!copies_) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.scalar_type()).pinned_memory(tensor.is_cuda());
  Tensor host = at::empty(tensor.sizes(), options);
  host.copy_(tensor);
  all_.push_back({tensor, host});
  return host;
}

void HostCopies::write_back() {
  for (Copy& copy : all_) copy.origin.copy_(copy.host);
}

}  // namespace conclave::train
