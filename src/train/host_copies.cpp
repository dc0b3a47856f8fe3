// SPDX-License-Identifier: Apache-2.0
#include "train/host_copies.h"

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace conclave::train {

Tensor HostCopies::of(const Tensor& tensor) {
  if (model_.device_path() == nullptr) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.scalar_type()).pinned_memory(tensor.is_cuda());
  Tensor host = at::empty(tensor.sizes(), options);
  host.copy_(tensor, /*non_blocking=*/true);
  all_.push_back({tensor, host});
  return host;
}

HostCopies::~HostCopies() {
  const bool pinned = std::any_of(all_.begin(), all_.end(), [](const Copy& copy) { return copy.origin.is_cuda(); });
  all_.clear();
  if (pinned) at::getHostAllocator(at::kCUDA)->empty_cache();
}

void HostCopies::arrive() {
  if (!all_.empty()) model_.reads().wait_for(all_.back().origin.device());
}

// Pinned memory that goes while a copy from it is under way is kept by its allocator until that has ended.
void HostCopies::write_back() {
  for (Copy& copy : all_) copy.origin.copy_(copy.host, /*non_blocking=*/true);
}

}  // namespace conclave::train
