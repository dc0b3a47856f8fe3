// SPDX-License-Identifier: Apache-2.0
#include "kernels/host_reads.h"

#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace conclave::kernels {

// Through an event, which LibTorch does not take for a wait by mistake: its own check of those (warning_state() in
// c10/cuda) finds every other one.
void HostReads::wait_for(at::Device device) const {
  around_([device] {
    if (device.is_cpu()) return;
    c10::Event done(device.type());
    done.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    done.synchronize();
  });
}

Tensor HostReads::read(const Tensor& tensor) {
  ++count_;
  const bool copies = !tensor.is_cpu();
  // Only into pinned memory does a device copy without the host's help.
  Tensor host = at::empty(tensor.sizes(), at::TensorOptions(tensor.scalar_type()).pinned_memory(copies));
  host.copy_(tensor, /*non_blocking=*/copies);
  wait_for(tensor.device());
  return host;
}

}  // namespace conclave::kernels
